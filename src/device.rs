//! Where tensors lie and are computed: the processor, or a CUDA device.

use std::fmt;
use std::str::FromStr;

use candle_core::Device;
use serde::{Deserialize, Serialize};
use sysinfo::{MemoryRefreshKind, System};

use crate::ranks::Launch;
use crate::{Error, Result};

/// The processor's memory in bytes: the machine's, or what a control group leaves this process of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// In all.
    pub in_all: u64,
    /// What can be had without taking it from a process; what only speeds files up counts as such.
    pub available: u64,
}

impl Memory {
    /// As the system says now; `None` where it does not.
    pub fn now() -> Option<Self> {
        let mut system = System::new().ok()?;
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        let (mut in_all, mut available) = (system.total_memory(), system.available_memory());
        if let Some(limits) = system.cgroup_limits() {
            (in_all, available) = (in_all.min(limits.total_memory), available.min(limits.free_memory));
        }
        (in_all > 0).then_some(Memory { in_all, available })
    }
}

/// A device by its name: `cpu`, or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceName {
    /// The processor.
    Cpu,
    /// The N-th CUDA device that the driver shows; of several ranks on one machine each takes the one that its place there is further.
    Cuda(usize),
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.split_once(':') {
            None if text == "cpu" => Ok(DeviceName::Cpu),
            Some(("cuda", number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => {
                number.parse().map(DeviceName::Cuda).map_err(|e| format!("device {text}: {e}"))
            }
            _ => Err(format!("no device is called `{text}` (expected cpu or cuda:N, say cuda:0)")),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            DeviceName::Cpu => write!(f, "cpu"),
            DeviceName::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl TryFrom<String> for DeviceName {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> Self {
        name.to_string()
    }
}

impl DeviceName {
    /// Whether it is the processor.
    pub fn is_cpu(self) -> bool {
        self == DeviceName::Cpu
    }

    /// The device of this rank; the same one whenever it is asked for, so that tensors of any part of the program meet on it.
    ///
    /// # Errors
    /// A CUDA device, and a program that was built without CUDA, or no such device.
    pub fn open(self) -> Result<Device> {
        match self {
            DeviceName::Cpu => Ok(Device::Cpu),
            DeviceName::Cuda(first) => open_cuda(first, Launch::of_environment()?.map_or(0, |launch| launch.local)),
        }
    }
}

/// Which device rank `local` of its machine takes, counted from `first`: one of its own, or the only one where the launcher shows each
/// rank no other.
#[cfg(any(feature = "cuda", test))]
fn ordinal(first: usize, local: usize, count: usize) -> Result<usize> {
    let own = if count == 1 { first } else { first + local };
    if own < count {
        return Ok(own);
    }
    let whose = if own == first { String::new() } else { format!(" for rank {local} of this machine (counted from cuda:{first})") };
    Err(Error::Invalid(format!("there is no cuda:{own}{whose}: the driver shows {count} CUDA device(s)")))
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_first: usize, _local: usize) -> Result<Device> {
    Err(Error::Invalid("this program was built without CUDA: cargo build --release --features cuda".to_string()))
}

/// One device object an ordinal: candle takes tensors of two objects for tensors of two devices.
#[cfg(feature = "cuda")]
fn open_cuda(first: usize, local: usize) -> Result<Device> {
    use std::collections::BTreeMap;
    use std::sync::{Mutex, PoisonError};

    use candle_core::cuda_backend::cudarc::driver::CudaContext;

    static OPENED: Mutex<BTreeMap<usize, Device>> = Mutex::new(BTreeMap::new());
    let count = CudaContext::device_count().map_err(|e| Error::Invalid(format!("the CUDA driver shows no device: {e}")))?;
    let ordinal = ordinal(first, local, usize::try_from(count).unwrap_or(0))?;
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = opened.get(&ordinal) {
        return Ok(device.clone());
    }
    // a stream that all threads share: candle's usual one is another for each thread, and its tensors would not wait for each other
    let device = Device::new_cuda_with_stream(ordinal).map_err(|e| Error::Invalid(format!("cuda:{ordinal} cannot be used: {e}")))?;
    // SAFETY: all work of this process on these tensors is on the one stream, whose order stands for the events.
    unsafe { device.as_cuda_device()?.disable_event_tracking() };
    opened.insert(ordinal, device.clone());
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_says_how_much_memory_there_is_and_what_of_it_can_be_had() {
        let memory = Memory::now().unwrap();
        assert!(0 < memory.available && memory.available <= memory.in_all, "{memory:?}");
    }

    #[test]
    fn names_read_back_as_they_are_written_and_others_are_refused_by_name() {
        for name in [DeviceName::Cpu, DeviceName::Cuda(0), DeviceName::Cuda(13)] {
            assert_eq!(name.to_string().parse(), Ok(name));
            assert_eq!(yaml_serde::from_str::<DeviceName>(&yaml_serde::to_string(&name).unwrap()).unwrap(), name);
        }
        for text in ["cuda", "cuda:", "cuda:-1", "cuda:+1", "gpu", "cpu:0", "CPU", ""] {
            let message = text.parse::<DeviceName>().unwrap_err();
            assert!(message.contains(text), "{text}: {message}");
        }
    }

    #[test]
    fn each_rank_of_a_machine_takes_a_device_of_its_own_or_the_only_one_it_is_shown() {
        let took = |first, local, count| ordinal(first, local, count).unwrap();
        assert_eq!([took(0, 0, 4), took(0, 3, 4), took(1, 2, 4)], [0, 3, 3]);
        assert_eq!(took(0, 5, 1), 0);
        let message = ordinal(2, 2, 4).unwrap_err().to_string();
        assert_eq!(message, "there is no cuda:4 for rank 2 of this machine (counted from cuda:2): the driver shows 4 CUDA device(s)");
        assert_eq!(ordinal(1, 0, 1).unwrap_err().to_string(), "there is no cuda:1: the driver shows 1 CUDA device(s)");
        assert!(ordinal(0, 0, 0).is_err());
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_program_without_cuda_says_how_to_build_one_with_it() {
        assert!(DeviceName::Cpu.open().unwrap().is_cpu());
        let message = DeviceName::Cuda(0).open().unwrap_err().to_string();
        assert_eq!(message, "this program was built without CUDA: cargo build --release --features cuda");
    }
}
