//! A volume cut into patches, each one's voxels together.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::{Values, cleared, fused, held, made_in_pieces, room, values, written};
use crate::gemm::{Added, PackedRight, PackedRows, Precision};
use crate::linear::add_bias;
use crate::norm::layer_rows;

/// Patches that become tokens together: fewer would read the weight more often.
const ROWS: usize = 112;

/// volumes: (B, F, H, W), size: voxels (frames, rows, columns) of a patch, which divide the volume
/// -> (patches, voxels), patches in the order (b, t, gh, gw), voxels in the order (frame, row, column).
pub fn patches(volumes: &Tensor, size: [usize; 3]) -> Result<Tensor> {
    let cut = Patches::of(volumes, size)?;
    if fused(&[volumes]) { volumes.contiguous()?.apply_op1(cut) } else { cut.composed(volumes) }
}

/// CT-ViT's patch embedding for reading: a layer norm of each patch, x W^T + b, a layer norm, without the patches ever being a tensor. In f32 on the
/// CPU, the bits of the operations one by one; no gradient.
///
/// volumes: (B, F, H, W), size: as for [`patches`] with P voxels, norms: weight and bias (P) and (C), weight: (C, P), bias: (C) -> (patches, C).
pub fn patch_tokens(
    volumes: &Tensor,
    size: [usize; 3],
    norms: [[&Tensor; 2]; 2],
    [weight, bias]: [&Tensor; 2],
    eps: f64,
) -> Result<Tensor> {
    let cut = Patches::of(volumes, size)?;
    let ((count, voxels), (channels, inputs), eps) = (cut.shape(), weight.dims2()?, eps as f32);
    let long = |rows: [&Tensor; 2], width: usize| rows.iter().all(|row| row.elem_count() == width);
    if inputs != voxels || !long(norms[0], voxels) || !long(norms[1], channels) || bias.elem_count() != channels || channels == 0 {
        bail!("patch tokens: patches of {voxels} voxels, weight {:?}, bias {:?}, norms {norms:?}", weight.shape(), bias.shape());
    }
    let held = held("patch tokens", [volumes, weight, bias].into_iter().chain(norms.into_iter().flatten()))?;
    let values: Vec<Values> = held.iter().map(Values::of).collect::<Result<_>>()?;
    let [volumes, weight, bias, norm @ .., out_norm, out_shift] = &values[..] else { unreachable!("there are seven tensors") };
    let norm = [&*norm[0], &*norm[1]];
    let packed = PackedRight::new(weight, voxels, Precision::F32);
    let work = |(patch, normed, tokens, rows): &mut (Vec<f32>, Vec<f32>, Vec<f32>, PackedRows), (piece, out): (usize, &mut [_])| {
        let out = cleared(out);
        let (patch, normed) = (room(patch, voxels), room(normed, out.len() / channels * voxels));
        for (row, normed) in normed.chunks_exact_mut(voxels).enumerate() {
            cut.copy(piece * ROWS + row, volumes, patch);
            layer_rows(patch, norm, eps, normed);
        }
        rows.pack(normed, &packed);
        let tokens = room(tokens, out.len());
        rows.multiply(&packed, 0, (0, channels), (tokens, channels), Added::Nothing);
        add_bias(tokens, bias);
        layer_rows(tokens, [out_norm, out_shift], eps, out);
    };
    // SAFETY: the pieces are all there is.
    let tokens = unsafe {
        written(count * channels, |out| {
            out.par_chunks_mut(ROWS * channels).enumerate().for_each_init(Default::default, work);
        })
    };
    Tensor::from_vec(tokens, (count, channels), held[0].device())
}

#[derive(Clone, Copy)]
struct Patches {
    size: [usize; 3],
    /// (B, T, Gh, Gw)
    grid: [usize; 4],
}

impl Patches {
    /// How (B, F, H, W) is cut.
    fn of(volumes: &Tensor, size: [usize; 3]) -> Result<Self> {
        let (b, f, h, w) = volumes.dims4()?;
        let [pt, ph, pw] = size;
        if size.contains(&0) || f % pt != 0 || h % ph != 0 || w % pw != 0 {
            bail!("patches of {size:?} do not divide volumes of {:?}", volumes.shape());
        }
        Ok(Patches { size, grid: [b, f / pt, h / ph, w / pw] })
    }

    fn shape(&self) -> (usize, usize) {
        (self.grid.iter().product(), self.size.iter().product())
    }

    fn composed(&self, volumes: &Tensor) -> Result<Tensor> {
        let ([b, t, gh, gw], [pt, ph, pw]) = (self.grid, self.size);
        volumes.reshape(&[b, t, pt, gh, ph, gw, pw][..])?.permute(&[0, 1, 3, 5, 2, 4, 6][..])?.contiguous()?.reshape(self.shape())
    }

    /// Copies the voxels of patch `index`.
    fn copy(&self, index: usize, volumes: &[f32], patch: &mut [f32]) {
        let ([_, t, gh, gw], [pt, ph, pw]) = (self.grid, self.size);
        let (h, w) = (gh * ph, gw * pw);
        let (frame, row, column) = (index / (gh * gw) % t * pt, index / gw % gh * ph, index % gw * pw);
        let volume = &volumes[index / (t * gh * gw) * t * pt * h * w..];
        for (line, out) in patch.chunks_exact_mut(pw).enumerate() {
            let start = ((frame + line / ph) * h + row + line % ph) * w + column;
            out.copy_from_slice(&volume[start..][..pw]);
        }
    }
}

impl CustomOp1 for Patches {
    fn name(&self) -> &'static str {
        "patches"
    }

    fn cpu_fwd(&self, volumes: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (volumes, shape) = (values(volumes, layout)?, self.shape());
        let out = made_in_pieces(volumes.len(), shape.1, |index, patch| self.copy(index, volumes, patch));
        Ok((CpuStorage::F32(out), Shape::from(shape)))
    }

    fn bwd(&self, volumes: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let ([b, t, gh, gw], [pt, ph, pw]) = (self.grid, self.size);
        let grad = grad.reshape(&[b, t, gh, gw, pt, ph, pw][..])?.permute(&[0, 1, 4, 2, 5, 3, 6][..])?;
        Ok(Some(grad.contiguous()?.reshape(volumes.shape())?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn patches_and_their_gradient_equal_reshapes_and_permutations() {
        let values: Vec<f32> = (0..2 * 4 * 6 * 8).map(|i| i as f32).collect();
        let volumes = Var::from_vec(values, (2, 4, 6, 8), &Device::Cpu).unwrap();
        let size = [2, 3, 4];
        let found = patches(&volumes, size).unwrap();
        let expected = Patches { size, grid: [2, 2, 2, 2] }.composed(&volumes).unwrap();
        assert_eq!(found.to_vec2::<f32>().unwrap(), expected.to_vec2::<f32>().unwrap());
        let gradient = |y: &Tensor| {
            let store = (y * y.detach().cos().unwrap()).unwrap().sum_all().unwrap().backward().unwrap();
            store.get(&volumes).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(gradient(&found), gradient(&expected));
        assert!(patches(&volumes, [3, 3, 4]).unwrap_err().to_string().contains("do not divide"));
    }
}
