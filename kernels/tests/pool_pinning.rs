//! Pinned pools: every thread runs where it was told, and a processor that is not there is refused.

#![expect(clippy::unwrap_used, reason = "a failed call fails the test")]

use kernels::KernelError;
use kernels::cpu::{Cpu, Isa};
use std::collections::BTreeSet;
use std::sync::{Barrier, Mutex};

/// The list that Linux keeps for the calling thread, `0-1,3`.
fn allowed_here() -> String {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.unwrap().trim().to_owned()
}

/// The first and last processor this process may use.
fn two_processors() -> BTreeSet<usize> {
    let list = allowed_here();
    let ends = list.split([',', '-']).map(|number| number.parse().unwrap());
    let all: Vec<usize> = ends.collect();
    BTreeSet::from([all[0], all[all.len() - 1]])
}

/// On a thread of its own, since a pinned pool's caller stays pinned.
fn on_a_thread<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(run).join().unwrap())
}

#[test]
fn every_thread_runs_on_its_processor_and_nowhere_else() {
    let cpus: Vec<usize> = two_processors().into_iter().collect();
    let seen = on_a_thread(|| {
        let cpu = Cpu::pinned(Isa::Portable, &cpus).unwrap();
        assert_eq!(cpu.threads(), cpus.len());
        let (seen, all) = (Mutex::new(BTreeSet::new()), Barrier::new(cpus.len()));
        cpu.for_each_chunk(cpus.len(), 1, &|_| {
            // Until every thread has a chunk, so that none runs two.
            all.wait();
            seen.lock().unwrap().insert(allowed_here());
        });
        seen.into_inner().unwrap()
    });
    assert_eq!(seen, cpus.iter().map(ToString::to_string).collect());
    assert_ne!(allowed_here(), "", "the test's own thread is as free as before");
}

#[test]
fn results_do_not_depend_on_where_threads_run() {
    let cpus: Vec<usize> = two_processors().into_iter().collect();
    let sum = |cpu: &Cpu| {
        let total = Mutex::new(0);
        cpu.for_each_chunk(1000, 7, &|range| *total.lock().unwrap() += range.sum::<usize>());
        total.into_inner().unwrap()
    };
    let pinned = on_a_thread(|| sum(&Cpu::pinned(Isa::Portable, &cpus).unwrap()));
    assert_eq!(pinned, sum(&Cpu::new(Isa::Portable, 2).unwrap()));
}

#[test]
fn a_processor_that_is_not_there_is_refused_by_name() {
    let first = *two_processors().first().unwrap();
    // 1023 is the last number a set can hold; 5000 lies beyond.
    for absent in [1023, 5000] {
        for cpus in [vec![absent], vec![first, absent], vec![absent, first]] {
            let error = on_a_thread(|| Cpu::pinned(Isa::Portable, &cpus).unwrap_err());
            assert!(matches!(error, KernelError::Pinning { cpu, .. } if cpu == absent), "{error}");
            assert!(error.to_string().contains(&format!("CPU {absent}: ")), "{error}");
        }
    }
    assert!(on_a_thread(|| Cpu::pinned(Isa::Portable, &[]).is_err()));
}
