//! The frozen encoder's layers: nothing in them has a gradient.

use candle_core::{DType, Tensor};
use ctscribe_ops::{self as ops, BertBlock, Matrix};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::weights::{Init, Params};

use super::{BertConfig, STD, norm};

/// The numbers in which a frozen encoder's weights are held and multiplied; norms, attention and the states between layers are in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Products and sums in f32.
    F32,
    /// f32, multiplied in integers of 16 bits with exact sums ([`ops::Precision::Int16`]): states within 1e-3 of f32's, in less time on a processor
    /// that multiplies such; on others, and on a GPU, f32.
    Int16,
    /// Factors rounded to bf16, sums in f32 (on a processor without such products all in f32, of rounded weights): half the weights' memory, and less
    /// time where the processor multiplies bf16 faster than f32.
    Bf16,
}

impl Precision {
    fn dtype(self) -> DType {
        match self {
            Precision::F32 | Precision::Int16 => DType::F32,
            Precision::Bf16 => DType::BF16,
        }
    }
}

/// A layer of BERT (norms behind the residual sums) with its names.
pub(super) fn layer(config: &BertConfig, precision: Precision, params: &Params) -> Result<BertBlock> {
    let (width, ffn, attention) = (config.hidden_size, config.intermediate_size, params.at("attention"));
    let affine = |params: &Params, (inputs, outputs)| affine(params, (inputs, outputs), precision);
    let projection = |name: &str| affine(&attention.at("self").at(name), (width, width));
    let layers = [
        projection("query")?,
        projection("key")?,
        projection("value")?,
        affine(&attention.at("output.dense"), (width, width))?,
        affine(&params.at("intermediate.dense"), (width, ffn))?,
        affine(&params.at("output.dense"), (ffn, width))?,
    ];
    let norms = [norm(&attention.at("output.LayerNorm"), width)?, norm(&params.at("output.LayerNorm"), width)?];
    Ok(BertBlock::new(layers, norms.each_ref().map(|norm| norm.each_ref()), config.num_attention_heads, config.layer_norm_eps)?)
}

/// Weight (outputs, inputs) in `precision` and bias (outputs) of a frozen linear layer.
fn affine(params: &Params, (inputs, outputs): (usize, usize), precision: Precision) -> Result<(Matrix, Tensor)> {
    let weight = params.clone().with_dtype(precision.dtype()).get("weight", &[outputs, inputs], Init::Normal(STD))?;
    let weight = Matrix::from_tensor(&weight)?;
    let weight = if precision == Precision::Int16 { weight.with_precision(ops::Precision::Int16) } else { weight };
    Ok((weight, params.get("bias", &[outputs], Init::Zeros)?))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::text::bert::BertEncoder;

    const LAYERS: usize = 3;

    fn encoder(precision: Precision) -> BertEncoder {
        let config = BertConfig {
            vocab_size: 100,
            hidden_size: 64,
            num_hidden_layers: LAYERS,
            num_attention_heads: 4,
            intermediate_size: 256,
            max_position_embeddings: 32,
            type_vocab_size: 2,
            layer_norm_eps: 1e-12,
            pad_token_id: 0,
            hidden_dropout_prob: 0.0,
            model_type: "bert".to_string(),
        };
        BertEncoder::new(&config, precision, &Params::fresh(1, &Device::Cpu)).unwrap()
    }

    /// Ids (6, 20), the later rows shorter, and their mask.
    fn texts() -> (Tensor, Tensor) {
        let ids = Tensor::from_vec((0..120).map(|at| at * 37 % 97 + 3).collect::<Vec<u32>>(), (6, 20), &Device::Cpu).unwrap();
        let mask = Tensor::from_vec((0..120).map(|at| u32::from(at % 20 < 20 - at / 20 * 3)).collect::<Vec<u32>>(), (6, 20), &Device::Cpu);
        (ids, mask.unwrap())
    }

    fn norm_of(x: &Tensor) -> f32 {
        x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt()
    }

    #[test]
    fn states_in_bf16_are_those_in_f32_but_for_its_rounding() {
        let (ids, mask) = texts();
        let [exact, narrow] = [Precision::F32, Precision::Bf16].map(|precision| encoder(precision).forward(&ids, &mask).unwrap());
        let apart = norm_of(&(&exact - &narrow).unwrap()) / norm_of(&exact);
        // four products in a row a layer, with 2^-9 for each factor
        let most = (LAYERS * 4) as f32 / 256.0;
        assert!(apart > 1e-6 && apart < most, "{apart} of {most}");
    }

    #[test]
    fn states_in_integers_lie_within_a_thousandth_of_those_in_f32() {
        let (ids, mask) = texts();
        let [exact, near] = [Precision::F32, Precision::Int16].map(|precision| encoder(precision).forward(&ids, &mask).unwrap());
        let apart = norm_of(&(&exact - &near).unwrap()) / norm_of(&exact);
        assert!(apart < 1e-3, "{apart}");
    }

    #[test]
    fn a_padded_text_has_the_states_it_has_alone() {
        let (ids, mask) = texts();
        let encoder = encoder(Precision::F32);
        let together = encoder.forward(&ids, &mask).unwrap();
        for (row, length) in [(0, 20), (3, 11), (5, 5)] {
            let own = |x: &Tensor| x.narrow(0, row, 1).unwrap().narrow(1, 0, length).unwrap().contiguous().unwrap();
            let alone = encoder.forward(&own(&ids), &own(&mask)).unwrap();
            let apart = norm_of(&(own(&together) - alone).unwrap());
            assert!(apart < 1e-5 * norm_of(&own(&together)), "text {row}: {apart}");
        }
    }
}
