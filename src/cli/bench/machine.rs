//! What is known of the machine and of this process, from `/proc` where there is one. Nothing is guessed.

use std::fs::read_to_string;

use serde_json::{Value, json};

use super::super::cores::cores;

/// What Linux counts processor time in, on every architecture that this program is built for.
const TICKS_PER_SECOND: f64 = 100.0;

/// The machine in a few words: processor, cores, instruction sets that matter here, memory, operating system.
pub(super) fn machine() -> Value {
    json!({
        "processor": field("/proc/cpuinfo", "model name"),
        "cores": cores(),
        "instructions": instructions(),
        "memory_bytes": kibibytes("/proc/meminfo", "MemTotal"),
        "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
    })
}

/// Processes that want to run, averaged over 1, 5 and 15 minutes.
pub(super) fn load() -> Option<Vec<f64>> {
    let text = read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().take(3).map(|word| word.parse().ok()).collect()
}

/// The most memory this process ever had resident.
pub(super) fn peak_rss_bytes() -> Option<u64> {
    kibibytes("/proc/self/status", "VmHWM")
}

/// Processor time of this process so far, of all its threads.
pub(super) fn processor_seconds() -> Option<f64> {
    let text = read_to_string("/proc/self/stat").ok()?;
    // The name in brackets may hold anything; user and system time are the 12th and 13th field behind it.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some((ticks(11)? + ticks(12)?) as f64 / TICKS_PER_SECOND)
}

#[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
fn instructions() -> Vec<&'static str> {
    let known = [
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("fma", std::is_x86_feature_detected!("fma")),
        ("avx512f", std::is_x86_feature_detected!("avx512f")),
    ];
    known.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "x86")))]
fn instructions() -> Vec<&'static str> {
    Vec::new()
}

/// The first line `name: value` of a file of the kernel's.
fn field(file: &str, name: &str) -> Option<String> {
    let text = read_to_string(file).ok()?;
    let value = |line: &str| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    };
    text.lines().find_map(value)
}

fn kibibytes(file: &str, name: &str) -> Option<u64> {
    let value = field(file, name)?;
    value.strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_kernel_is_understood() {
        let (before, mut work) = (processor_seconds().unwrap(), 0u64);
        while processor_seconds().unwrap() < before + 0.02 {
            work = std::hint::black_box(work + 1);
        }
        assert!(peak_rss_bytes().unwrap() > 1 << 20);
        assert_eq!(load().unwrap().len(), 3);
        assert!(machine()["memory_bytes"].as_u64().unwrap() > peak_rss_bytes().unwrap());
    }
}
