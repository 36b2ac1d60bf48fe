//! Work of a device that is recorded once and done again as a CUDA graph: one launch for hundreds.

use std::fmt;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::CudaGraph;
use candle_core::cuda_backend::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use candle_core::{CudaDevice, DType, Result, Tensor, bail};

use super::place::device;
use crate::transfers;

/// A pass over inputs in places of their own.
pub struct Graph {
    graph: CudaGraph,
    inputs: Vec<Tensor>,
    output: Tensor,
}

// SAFETY: a graph belongs to its context, not to a thread, and as it is not Sync one thread uses it at a time
unsafe impl Send for Graph {}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").field("inputs", &self.inputs).field("output", &self.output).finish_non_exhaustive()
    }
}

impl Graph {
    /// Does `pass`, as ever, then records it and compares what the record gives. -> what it makes of `inputs`, and the record or why there is none.
    pub fn record<E: From<candle_core::Error> + fmt::Display>(
        inputs: &[Tensor],
        mut pass: impl FnMut(&[Tensor]) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<(Tensor, Result<Graph>), E> {
        let Some(first) = inputs.first() else { return Err(candle_core::Error::msg("a pass without inputs").into()) };
        let device = device(first)?;
        let inputs: Vec<Tensor> = inputs.iter().map(Tensor::copy).collect::<Result<_>>()?;
        // shapes and strides, which candle sends up with an operation, stay there: a record cannot send anything
        let _kept = device.enable_cuda_graph_htod_cache();
        let expected = pass(&inputs)?;
        let recorded = Self::capture(&device, inputs, &expected, |inputs| pass(inputs).map_err(candle_core::Error::msg));
        // what a record that failed has left behind is no fault of the next call's
        let left = device.cuda_stream().context().check_err();
        let checked = recorded.and_then(|graph| {
            left.w()?;
            graph.check(&expected)?;
            Ok(graph)
        });
        Ok((expected, checked))
    }

    fn capture(
        device: &CudaDevice,
        inputs: Vec<Tensor>,
        expected: &Tensor,
        mut pass: impl FnMut(&[Tensor]) -> Result<Tensor>,
    ) -> Result<Graph> {
        let (stream, output) = (device.cuda_stream(), expected.zeros_like()?);
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
        // all that is made within is given back within: the record's memory is its own
        let done = pass(&inputs).and_then(|y| output.slice_set(&y.contiguous()?, 0, 0));
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).w();
        done?;
        match graph? {
            Some(graph) => Ok(Graph { graph, inputs, output }),
            None => bail!("the device recorded nothing"),
        }
    }

    /// The record gives what the pass gave, to the bit.
    fn check(&self, expected: &Tensor) -> Result<()> {
        self.graph.launch().w()?;
        let others = self.output.ne(expected)?.to_dtype(DType::F32)?.sum_all()?;
        match transfers::read_number(&others)? {
            0.0 => Ok(()),
            others => bail!("{others} of {} values differ from those of the pass that was recorded", expected.elem_count()),
        }
    }

    /// What the pass makes of other inputs of the same shapes; the next run writes over it.
    pub fn run(&self, inputs: &[Tensor]) -> Result<Tensor> {
        for (own, new) in self.inputs.iter().zip(inputs) {
            own.slice_set(&new.contiguous()?, 0, 0)?;
        }
        self.graph.launch().w()?;
        Ok(self.output.clone())
    }
}
