//! Sums over NCCL, one GPU a rank; the rest over the ranks that started it. It has run with a stand-in for NCCL (`scripts/check-cuda run`), not on GPUs.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::CudaContext;
use candle_core::cuda_backend::cudarc::nccl::result::NcclError;
use candle_core::cuda_backend::cudarc::nccl::safe::{Comm, Id, ReduceOp};

use super::Communicator;
use crate::{Error, Result};

/// Ranks that add up on their GPUs.
pub struct Nccl {
    ranks: Box<dyn Communicator>,
    comm: Mutex<Handle>,
}

/// NCCL's communicator.
struct Handle(Comm);

// SAFETY: NCCL's communicator is bound to a device, not to a thread; the mutex around it lets one thread use it at a time.
unsafe impl Send for Handle {}

/// Bytes of NCCL's unique id.
const ID: usize = 128;

impl Nccl {
    /// Whether this machine has a GPU for its rank number `local`.
    pub fn has_gpu(local: usize) -> bool {
        CudaContext::device_count().is_ok_and(|count| local < count as usize)
    }

    /// `ranks`, with their sums on the GPUs: GPU number `ordinal` of this machine is this rank's. The leader's id reaches the others by `ranks`.
    pub fn over(ranks: Box<dyn Communicator>, ordinal: usize) -> Result<Self> {
        let stream = CudaDevice::new_with_stream(ordinal)?.cuda_stream();
        let own =
            if ranks.leads() { Id::new().map_err(|e| fault("no id", &e))?.internal().map(|byte| byte as u8).to_vec() } else { vec![] };
        let told = ranks.gather(&own)?.swap_remove(0);
        let bytes: [u8; ID] = told.try_into().map_err(|_| Error::Invalid("NCCL: the leading rank's id is not whole".to_string()))?;
        let id = Id::uninit(bytes.map(|byte| byte as std::ffi::c_char));
        let comm = Comm::from_rank(stream, ranks.rank(), ranks.size(), id).map_err(|e| fault("the ranks could not be joined", &e))?;
        Ok(Nccl { ranks, comm: Mutex::new(Handle(comm)) })
    }
}

fn fault(what: &str, error: &NcclError) -> Error {
    Error::Invalid(format!("NCCL: {what}: {:?}", error.0))
}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Nccl {{ ranks: {:?} }}", self.ranks)
    }
}

impl Communicator for Nccl {
    fn rank(&self) -> usize {
        self.ranks.rank()
    }

    fn size(&self) -> usize {
        self.ranks.size()
    }

    fn sum(&self, values: &mut [f64]) -> Result<()> {
        let comm = self.comm.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = comm.0.stream();
        let driver = |e| Error::Invalid(format!("CUDA: a sum over ranks: {e}"));
        let mut there = stream.clone_htod(values).map_err(driver)?;
        comm.0.all_reduce_in_place(&mut there, &ReduceOp::Sum).map_err(|e| fault("a sum", &e))?;
        stream.memcpy_dtoh(&there, values).map_err(driver)?;
        stream.synchronize().map_err(driver)
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.ranks.gather(own)
    }

    fn abort(&self, code: u8) -> ! {
        self.ranks.abort(code)
    }
}
