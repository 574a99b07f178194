//! The memory that the process and the device hold.

use wgkv::Gpu;
use wgkv_testing::wait;

/// Bytes that either may grow by while the amount of work stays the same: the allocators' own
/// blocks come and go. Vulkan's validation layers, which wgpu loads where debug assertions are on,
/// keep the name of every bind group that ever existed, half a kilobyte a step: long runs need a
/// release build, as `cargo bench` makes it, or `WGPU_VALIDATION=0`.
const GROWTH: u64 = 64 << 20;

#[derive(Clone, Copy)]
pub struct Memory {
    /// Resident memory of the process, where the system reports it.
    process: Option<u64>,
    /// Bytes of all buffers on the device, where wgpu reports them.
    device: Option<u64>,
}

fn process() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kilobytes: u64 = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()?;
    Some(1024 * kilobytes)
}

impl Memory {
    /// Reads both, after waiting for the device: wgpu holds buffers until work that refers to them
    /// is done.
    pub fn now(gpu: &Gpu) -> Self {
        wait(gpu);
        Self { process: process(), device: gpu.device().generate_allocator_report().map(|report| report.total_allocated_bytes) }
    }

    /// Asserts that memory has not grown.
    ///
    /// # Panics
    /// If there is more than [`GROWTH`] beyond what there was.
    pub fn assert_not_above(&self, before: &Self) {
        for (what, now, before) in [("process", self.process, before.process), ("device", self.device, before.device)] {
            if let (Some(now), Some(before)) = (now, before) {
                assert!(now <= before + GROWTH, "the memory of the {what} grew from {before} to {now} bytes");
            }
        }
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let megabytes = |bytes: Option<u64>| bytes.map_or("?".into(), |bytes| format!("{:.1}", bytes as f64 * 1e-6));
        write!(f, "process {} MB, device {} MB", megabytes(self.process), megabytes(self.device))
    }
}
