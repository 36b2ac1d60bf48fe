//! All trained tensors at once: whether they are numbers, whether two ranks hold the same.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use ctscribe_ops::transfers::host_values;
use sha2::{Digest, Sha256};

use crate::Result;

/// The first tensor, all of the host's memory, that holds a number that is none.
pub fn not_finite(model: &BTreeMap<String, Tensor>) -> Result<Option<&str>> {
    for (name, tensor) in model {
        let values: Vec<f32> = host_values(&tensor.to_dtype(DType::F32)?)?;
        if values.iter().any(|value| !value.is_finite()) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// SHA-256 of names and values of tensors of the host's memory, in hexadecimal.
pub fn sha256<'a>(tensors: impl Iterator<Item = (&'a String, &'a Tensor)>) -> Result<String> {
    let mut hasher = Sha256::new();
    for (name, tensor) in tensors {
        hasher.update(name);
        // every kind of number here is an f64 without loss: f32, and counts below 2^53
        for value in host_values::<f64>(&tensor.to_dtype(DType::F64)?)? {
            hasher.update(value.to_le_bytes());
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
