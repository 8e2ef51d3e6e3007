//! Where tensors live: chosen once, by a word from the command line or a configuration, and passed from there.

mod limits;

pub use candle_core::Device;
use candle_core::utils;
pub use limits::SquareProduct;

/// The device asked for cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// Not a device's name.
    #[error("`{0}` is not a device; give auto, cpu, cuda, cuda:N or metal")]
    Unknown(String),
    /// The program was built without it.
    #[error("this program was built without {0}; build it with `--features {0}`, or give auto or cpu")]
    NotBuilt(&'static str),
    /// The machine does not have it, or its driver fails.
    #[error("device `{0}` cannot be used: {1}; give auto or cpu")]
    Unavailable(String, String),
}

/// The device called `name`: `auto`, `cpu`, `cuda`, `cuda:N` or `metal`. `auto` takes the first that works of CUDA, Metal
/// and the CPU.
///
/// # Errors
/// [`DeviceError`] when the name is unknown or the device cannot be used; never for `auto` and `cpu`.
pub fn select(name: &str) -> Result<Device, DeviceError> {
    match name {
        "auto" => Ok(select("cuda").or_else(|_| select("metal")).unwrap_or(Device::Cpu)),
        "cpu" => Ok(Device::Cpu),
        "cuda" => cuda(name, 0),
        "metal" if !utils::metal_is_available() => Err(DeviceError::NotBuilt("metal")),
        "metal" => {
            Device::new_metal(0).map_err(|error| DeviceError::Unavailable(name.into(), error.to_string()))
        }
        _ => match name.strip_prefix("cuda:").map(str::parse) {
            Some(Ok(ordinal)) => cuda(name, ordinal),
            _ => Err(DeviceError::Unknown(name.into())),
        },
    }
}

fn cuda(name: &str, ordinal: usize) -> Result<Device, DeviceError> {
    if !utils::cuda_is_available() {
        return Err(DeviceError::NotBuilt("cuda"));
    }
    Device::new_cuda(ordinal).map_err(|error| DeviceError::Unavailable(name.into(), error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_always_finds_a_device_and_unknown_names_are_refused() {
        assert!(select("auto").is_ok() && select("cpu").unwrap().is_cpu());
        for name in ["gpu", "cuda:", "cuda:x", "CPU", ""] {
            assert_eq!(select(name).unwrap_err(), DeviceError::Unknown(name.into()));
        }
    }

    #[test]
    #[cfg(not(any(feature = "cuda", feature = "metal")))]
    fn a_device_that_was_not_built_says_how_to_build_it() {
        assert_eq!(select("cuda:1").unwrap_err(), DeviceError::NotBuilt("cuda"));
        assert!(select("metal").unwrap_err().to_string().contains("--features metal"));
    }
}
