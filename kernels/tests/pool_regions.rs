//! The thread pool seen through `Cpu::for_each_chunk`: every index once, panics passed on, no processor time idle.

#![expect(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kernels::KernelError;
use kernels::cpu::{Cpu, DisjointMut, Isa};
use proptest::prelude::*;

fn cpu(threads: usize) -> Cpu {
    Cpu::new(Isa::Portable, threads).unwrap()
}

/// Runs a region and checks that each index was given out exactly once, in ranges cut at multiples of `grain`.
fn check_covers(cpu: &Cpu, items: usize, grain: usize) {
    let seen: Vec<AtomicU32> = (0..items).map(|_| AtomicU32::new(0)).collect();
    cpu.for_each_chunk(items, grain, &|range| {
        assert!(range.start % grain.max(1) == 0 && range.len() <= grain.max(1) && !range.is_empty());
        for index in range {
            seen[index].fetch_add(1, Ordering::Relaxed);
        }
    });
    assert!(seen.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{items} items, grain {grain}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn every_index_is_given_out_once(threads in 1usize..9, regions in prop::collection::vec((0usize..500, 0usize..70), 1..20)) {
        let cpu = cpu(threads);
        for (items, grain) in regions {
            check_covers(&cpu, items, grain);
        }
    }
}

#[test]
fn a_hundred_thousand_tiny_regions_finish_and_see_each_others_writes() {
    for threads in [2, 3, 5] {
        let cpu = cpu(threads);
        let mut values = [0u64; 8];
        let regions = if threads == 2 { 100_000 } else { 10_000 };
        for _ in 0..regions {
            let shared = DisjointMut::new(&mut values);
            cpu.for_each_chunk(8, 1, &|range| {
                // SAFETY: the ranges of one region are disjoint.
                let own = unsafe { shared.slice(range) };
                own[0] += 1;
            });
        }
        assert_eq!(values, [regions; 8]);
    }
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
    let cpu = cpu(4);
    for culprit in [0, 7, 63] {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            cpu.for_each_chunk(64, 1, &|range| assert!(range.start != culprit, "chunk {culprit} fails"));
        }));
        let message = *outcome.unwrap_err().downcast::<String>().unwrap();
        assert_eq!(message, format!("chunk {culprit} fails"));
        check_covers(&cpu, 100, 3);
    }
}

#[test]
fn a_region_inside_a_region_and_two_callers_at_once_do_not_block() {
    let cpu = cpu(3);
    let total = AtomicUsize::new(0);
    let count = || {
        for _ in 0..200 {
            cpu.for_each_chunk(10, 1, &|outer| {
                cpu.for_each_chunk(10, 2, &|inner| {
                    total.fetch_add(outer.len() * inner.len(), Ordering::Relaxed);
                });
            });
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(count);
        scope.spawn(count);
    });
    assert_eq!(total.load(Ordering::Relaxed), 2 * 200 * 100);
}

/// Processor time of this process's pool threads, in clock ticks.
fn pool_ticks() -> u64 {
    let mut ticks = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let Ok(stat) = std::fs::read_to_string(task.unwrap().path().join("stat")) else { continue };
        let (name, fields) = stat.rsplit_once(')').unwrap();
        if name.contains("(cpu-") {
            let fields: Vec<&str> = fields.split_whitespace().collect();
            ticks += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        }
    }
    ticks
}

#[test]
fn idle_workers_park_and_wake_again() {
    let cpu = cpu(4);
    check_covers(&cpu, 1000, 1);
    // Other tests run pools of their own, so wait for any window of 50 ms without a tick.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let (before, since) = (pool_ticks(), Instant::now());
        while since.elapsed() < Duration::from_millis(50) {
            std::thread::yield_now();
        }
        if pool_ticks() == before {
            break;
        }
        assert!(Instant::now() < deadline, "pool threads never stop using the processor");
    }
    check_covers(&cpu, 1000, 1);
}

#[test]
fn thread_counts_are_bounded() {
    for threads in [0, 1025, usize::MAX] {
        let error = Cpu::new(Isa::Portable, threads).unwrap_err();
        assert_eq!(error, KernelError::OutOfRange { what: "threads", value: threads, limit: 1025 });
    }
    assert_eq!(cpu(3).threads(), 3);
}
