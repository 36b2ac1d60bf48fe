//! A weight of LLaMA's.

use candle_core::{DType, Device, Module, Tensor};
use ctscribe_lora::BaseLinear;
use ctscribe_ops::transfers::{host_values, to_device};
use ctscribe_ops::{self as ops, Matrix};

use crate::Result;
use crate::weights::{Init, Params};

/// A weight without a bias: frozen where it lies, or trained while a small model is pre-trained.
#[derive(Debug, Clone)]
pub enum Projection {
    Frozen(Matrix),
    Trained(Tensor),
}

impl Projection {
    pub fn new(params: &Params, name: &str, size: (usize, usize), init: Init) -> Result<Self> {
        Ok(match params.is_frozen() {
            true => Projection::Frozen(params.matrix(name, size, init)?),
            false => Projection::Trained(params.get(name, &[size.0, size.1], init)?),
        })
    }

    /// Bytes that [`Self::set_writing`] takes.
    pub fn packed_bytes(&self) -> u64 {
        match self {
            Projection::Frozen(matrix) => matrix.packed_bytes(),
            Projection::Trained(_) => 0,
        }
    }

    /// From now on it writes only: see [`Matrix::for_writing`].
    pub fn set_writing(&mut self) {
        if let Projection::Frozen(matrix) = self {
            *matrix = matrix.clone().for_writing();
        }
    }

    /// Rows `ids` (L), which are in the host's memory -> (L, in), f32, with one upload.
    pub fn rows(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Projection::Frozen(matrix) => matrix.rows(&host_values(ids)?),
            Projection::Trained(tensor) => tensor.index_select(&to_device(ids, tensor.device())?, 0),
        }
    }

    /// The type of what it multiplies.
    pub fn activation_dtype(&self) -> DType {
        match self {
            Projection::Frozen(matrix) => matrix.activation_dtype(),
            Projection::Trained(tensor) => tensor.dtype(),
        }
    }

    /// Whether its products are those of a frozen matrix on the CPU, whose results a block can keep.
    pub fn keeps_products(&self) -> bool {
        matches!(self, Projection::Frozen(matrix) if matrix.in_place())
    }

    fn device(&self) -> &Device {
        match self {
            Projection::Frozen(matrix) => matrix.device(),
            Projection::Trained(tensor) => tensor.device(),
        }
    }
}

impl Module for Projection {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Projection::Frozen(matrix) => matrix.forward(x),
            Projection::Trained(tensor) => ops::linear(x, tensor, None),
        }
    }
}

impl BaseLinear for Projection {
    fn size(&self) -> (usize, usize) {
        match self {
            Projection::Frozen(matrix) => matrix.size(),
            Projection::Trained(tensor) => (tensor.dims()[0], tensor.dims()[1]),
        }
    }

    fn device(&self) -> &Device {
        self.device()
    }

    fn weight(&self) -> candle_core::Result<Tensor> {
        match self {
            Projection::Frozen(matrix) => matrix.to_tensor(),
            Projection::Trained(tensor) => Ok(tensor.detach()),
        }
    }

    fn matrix(&self) -> Option<&Matrix> {
        match self {
            Projection::Frozen(matrix) => Some(matrix),
            Projection::Trained(_) => None,
        }
    }
}
