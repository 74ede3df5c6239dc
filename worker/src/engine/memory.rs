//! Memory in use, looked up at a bounded rate: it stands in every step's statistics and costs a file read.

use std::time::{Duration, Instant};

/// Time between two readings.
const READING_INTERVAL: Duration = Duration::from_secs(1);

/// Remembers the last reading.
pub(super) struct MemoryGauge {
    source: fn() -> u64,
    last: Option<(Instant, u64)>,
}

impl MemoryGauge {
    /// A gauge that asks `source` for bytes.
    pub(super) fn new(source: fn() -> u64) -> Self {
        Self { source, last: None }
    }

    /// Bytes in use, at most [`READING_INTERVAL`] old.
    pub(super) fn read(&mut self, now: Instant) -> u64 {
        match self.last {
            Some((at, bytes)) if now.duration_since(at) < READING_INTERVAL => bytes,
            _ => {
                let bytes = (self.source)();
                self.last = Some((now, bytes));
                bytes
            }
        }
    }
}

/// The process's resident set in bytes, 0 where Linux does not tell.
pub fn resident_bytes() -> u64 {
    std::fs::read_to_string("/proc/self/status").map_or(0, |status| parse_resident(&status))
}

fn parse_resident(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib =
        line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_set_is_read_from_its_line() {
        assert_eq!(parse_resident("Name:\tx\nVmRSS:\t   1204 kB\nThreads: 1\n"), 1204 * 1024);
        assert_eq!(parse_resident("VmRSS: lots"), 0);
        assert!(resident_bytes() > 1024 * 1024);
    }

    #[test]
    fn readings_are_reused_within_the_interval() {
        let mut gauge = MemoryGauge::new(|| 5);
        let start = Instant::now();
        assert_eq!(gauge.read(start), 5);
        gauge.source = || 6;
        assert_eq!(gauge.read(start + READING_INTERVAL / 2), 5);
        assert_eq!(gauge.read(start + READING_INTERVAL), 6);
    }
}
