//! The machine against a world that has one process, over random event sequences, and the paths worth naming.

use super::*;
use proptest::prelude::*;

const SEGV: ExitKind = ExitKind::Signal(11);
const KILLED: ExitKind = ExitKind::Signal(9);

fn timing() -> SupervisorTiming {
    SupervisorTiming {
        handshake: Duration::from_secs(10),
        load_silence: Duration::from_secs(20),
        backoff_first: Duration::from_millis(100),
        backoff_max: Duration::from_secs(5),
        crashes_max: 3,
        crash_window: Duration::from_secs(60),
        failed_retry: Duration::from_secs(30),
        exit_grace: Duration::from_millis(500),
        terminate_grace: Duration::from_secs(2),
        ..SupervisorTiming::default()
    }
}

/// The process and the clock, kept apart from the machine to judge what it does. Of an attached worker, `running`
/// stands for the connection, and `spawn_pending` for the try to make it.
struct World {
    tenure: Tenure,
    machine: Machine,
    now: Instant,
    running: bool,
    doomed: bool,
    spawn_pending: bool,
    greeted: bool,
    loaded: bool,
    drained: bool,
    /// An operator's restart that the machine has taken up and not yet carried out.
    restarting: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        Self::of(Tenure::Managed, seed)
    }

    fn of(tenure: Tenure, seed: u64) -> Self {
        let now = Instant::now();
        let mut world = Self {
            tenure,
            restarting: false,
            machine: Machine::new(tenure, timing(), seed, now),
            now,
            running: false,
            doomed: false,
            spawn_pending: false,
            greeted: false,
            loaded: false,
            drained: false,
        };
        world.give(Event::Tick);
        world
    }

    fn state(&self) -> WorkerState {
        self.machine.state()
    }

    fn give(&mut self, event: Event) -> Vec<Action> {
        match &event {
            Event::Spawned => (self.running, self.spawn_pending) = (true, false),
            Event::SpawnFailed(..) => self.spawn_pending = false,
            Event::Exited(_) => (self.running, self.doomed) = (false, false),
            Event::Hello(version) if self.running => self.greeted |= *version == PROTOCOL_VERSION,
            Event::ModelReady => self.loaded |= self.greeted,
            Event::Drain(_) => self.drained = true,
            _ => {}
        }
        let before = self.state();
        let is_restart = matches!(event, Event::Restart(_));
        let actions = self.machine.on(event, self.now);
        if is_restart && before == WorkerState::Ready {
            self.restarting = true;
            assert_eq!(self.state(), WorkerState::Draining, "a restart begins with a drain");
        }
        for action in &actions {
            self.judge(action, before);
        }
        if self.state() == WorkerState::Ready {
            assert!(self.greeted && self.loaded && self.running, "ready without handshake, model or process");
        }
        if matches!(self.state(), WorkerState::Backoff | WorkerState::Failed | WorkerState::Stopped) {
            assert!(!self.running && !self.spawn_pending, "{} beside a process", self.state());
        }
        actions
    }

    fn judge(&mut self, action: &Action, before: WorkerState) {
        match action {
            Action::Spawn => {
                assert_eq!(self.tenure, Tenure::Managed, "somebody else starts an attached worker");
                self.begin();
            }
            Action::Connect if self.tenure == Tenure::Attached => self.begin(),
            Action::Disconnect if self.tenure == Tenure::Attached => {
                (self.running, self.spawn_pending) = (false, false);
            }
            Action::Terminate | Action::SendDrain => {
                assert_eq!(self.tenure, Tenure::Managed, "an attached worker goes on without us");
            }
            Action::Kill if self.tenure == Tenure::Attached => {
                assert!(self.running, "a process id is its own only while the connection is open");
            }
            Action::Serve => assert_eq!((before, self.state()), (WorkerState::Loading, WorkerState::Ready)),
            Action::Kill => self.doomed |= self.running,
            Action::Release(blame) => {
                assert!(!self.running, "requests given away while the process runs");
                assert!(!self.restarting || *blame == Blame::Innocent, "blamed for an operator's restart");
                self.restarting = false;
            }
            _ => {}
        }
    }

    /// A life begins.
    fn begin(&mut self) {
        assert!(!self.running && !self.spawn_pending, "second process");
        assert!(!self.drained, "started after a drain");
        (self.spawn_pending, self.greeted, self.loaded) = (true, false, false);
    }

    /// Lets time pass to the machine's deadline, if it has one.
    fn tick(&mut self) -> Vec<Action> {
        let Some(deadline) = self.machine.deadline() else { return Vec::new() };
        self.now = self.now.max(deadline);
        self.give(Event::Tick)
    }

    fn exit(&mut self, exit: ExitKind) -> Vec<Action> {
        self.give(Event::Exited(exit))
    }

    /// Through a start without incident.
    fn come_up(&mut self) {
        while matches!(self.state(), WorkerState::Backoff | WorkerState::Failed) {
            self.tick();
        }
        self.appear();
        for event in [Event::Hello(PROTOCOL_VERSION), Event::Progress, Event::ModelReady] {
            self.give(event);
        }
        assert_eq!(self.state(), WorkerState::Ready);
    }

    /// The process starts, or the connection is made, of which the machine of an attached worker is not told.
    fn appear(&mut self) {
        match self.tenure {
            Tenure::Managed => drop(self.give(Event::Spawned)),
            Tenure::Attached => (self.running, self.spawn_pending) = (true, false),
        }
    }

    fn wait(&self) -> Duration {
        self.machine.deadline().expect("a wait has an end") - self.now
    }
}

#[derive(Debug, Clone)]
enum Op {
    Pass(u64),
    Tick,
    Spawned,
    SpawnFailed(bool),
    Hello(bool),
    Progress,
    ModelReady,
    Useful,
    Lost(u8),
    Exit(u8),
    Drain,
    Restart,
    Idle,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0u64..40_000).prop_map(Op::Pass),
        4 => Just(Op::Tick),
        6 => Just(Op::Spawned),
        1 => any::<bool>().prop_map(Op::SpawnFailed),
        6 => prop::bool::weighted(0.95).prop_map(Op::Hello),
        3 => Just(Op::Progress),
        6 => Just(Op::ModelReady),
        2 => Just(Op::Useful),
        2 => (0u8..7).prop_map(Op::Lost),
        3 => (0u8..6).prop_map(Op::Exit),
        1 => prop::bool::weighted(0.1).prop_map(|drain| if drain { Op::Drain } else { Op::Tick }),
        1 => Just(Op::Idle),
        1 => Just(Op::Restart),
    ]
}

/// Applies `op` where the world allows it: a process that is not there cannot exit or speak.
fn apply(world: &mut World, op: Op) {
    match op {
        Op::Pass(ms) => world.now += Duration::from_millis(ms),
        Op::Tick => drop(world.tick()),
        Op::Spawned if world.spawn_pending => world.appear(),
        Op::SpawnFailed(_) if world.spawn_pending && world.tenure == Tenure::Attached => {
            world.give(Event::Lost(Loss::Fatal("connect to socket: no such file".to_owned())));
        }
        Op::SpawnFailed(for_good) if world.spawn_pending => {
            let kind = if for_good { ErrorKind::NotFound } else { ErrorKind::WouldBlock };
            world.give(Event::SpawnFailed("no process".to_owned(), kind));
        }
        Op::Hello(good) if world.running => {
            world.give(Event::Hello(if good { PROTOCOL_VERSION } else { PROTOCOL_VERSION + 1 }));
        }
        Op::Progress if world.running => drop(world.give(Event::Progress)),
        Op::ModelReady if world.running => drop(world.give(Event::ModelReady)),
        Op::Useful if world.state() == WorkerState::Ready => drop(world.give(Event::Useful)),
        Op::Lost(which) if world.running => {
            let losses = [
                Loss::Closed,
                Loss::Fatal("out of memory".to_owned()),
                Loss::Protocol("gap".to_owned()),
                Loss::Hung("no progress".to_owned()),
                Loss::Silent("no answer".to_owned()),
                Loss::Busy(Some(7)),
                Loss::Left,
            ];
            world.give(Event::Lost(losses[which as usize].clone()));
        }
        Op::Exit(which) if world.running && world.tenure == Tenure::Managed => {
            let exits = [
                SEGV,
                KILLED,
                ExitKind::Code(0),
                ExitKind::Code(1),
                ExitKind::Code(65),
                ExitKind::Signal(15),
            ];
            let exit = if world.doomed { KILLED } else { exits[which as usize] };
            world.exit(exit);
        }
        Op::Drain => drop(world.give(Event::Drain(Duration::from_secs(3)))),
        Op::Restart => drop(world.give(Event::Restart(Duration::from_secs(3)))),
        Op::Idle => drop(world.give(Event::Idle)),
        _ => {}
    }
}

/// From wherever it is, a machine comes to rest: ready with a well-behaved process, or where it may stay.
fn settle(world: &mut World) {
    for _ in 0..20 {
        match world.state() {
            WorkerState::Ready | WorkerState::Stopped => return,
            WorkerState::Failed if world.machine.deadline().is_none() => return,
            WorkerState::Starting if world.spawn_pending => world.appear(),
            WorkerState::Starting => drop(world.give(Event::Hello(PROTOCOL_VERSION))),
            WorkerState::Loading => drop(world.give(Event::ModelReady)),
            _ if world.spawn_pending => world.appear(),
            _ if world.doomed => drop(world.exit(KILLED)),
            _ => drop(world.tick()),
        }
    }
    panic!("stuck in {} with deadline {:?}", world.state(), world.machine.deadline());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_sequence_keeps_one_process_and_comes_to_rest(
        attached: bool,
        seed: u64,
        ops in prop::collection::vec(op(), 0..120),
    ) {
        let mut world = World::of(if attached { Tenure::Attached } else { Tenure::Managed }, seed);
        for op in ops {
            apply(&mut world, op);
        }
        settle(&mut world);
        prop_assert!(!world.drained || matches!(world.state(), WorkerState::Stopped));
    }

    #[test]
    fn waits_double_up_to_the_cap_and_vary_by_half(seed: u64, crashes in 1u32..12) {
        let mut world = World::new(seed);
        let policy = SupervisorTiming { crashes_max: usize::MAX, ..timing() };
        world.machine.timing = policy;
        for crash in 0..crashes {
            world.give(Event::Spawned);
            world.exit(SEGV);
            let nominal = (policy.backoff_first * 2u32.pow(crash)).min(policy.backoff_max);
            prop_assert!(world.wait() <= nominal && world.wait() >= nominal / 2, "crash {}: {:?}", crash, world.wait());
            world.tick();
        }
    }
}

#[test]
fn workers_of_different_seeds_wait_differently() {
    let wait = |seed| {
        let mut world = World::new(seed);
        world.give(Event::Spawned);
        world.exit(SEGV);
        world.wait()
    };
    assert_ne!(wait(1), wait(2));
}

#[test]
fn the_circuit_opens_after_repeated_crashes_and_one_failed_trial_opens_it_again() {
    let mut world = World::new(7);
    for _ in 0..3 {
        world.come_up();
        world.exit(SEGV);
    }
    assert_eq!((world.state(), world.wait()), (WorkerState::Failed, timing().failed_retry));
    world.now += timing().crash_window * 2;
    world.come_up();
    world.exit(SEGV);
    assert_eq!(world.state(), WorkerState::Failed);
    world.come_up();
    world.give(Event::Useful);
    world.exit(SEGV);
    assert_eq!(world.state(), WorkerState::Backoff, "work done closes the circuit");
}

#[test]
fn kills_from_outside_and_crashes_after_work_do_not_open_the_circuit() {
    let mut world = World::new(7);
    for round in 0..20 {
        world.come_up();
        if round % 2 == 0 {
            world.give(Event::Useful);
        }
        let actions = world.exit(KILLED);
        assert!(actions.contains(&Action::Release(Blame::Innocent)));
        assert_eq!(world.state(), WorkerState::Backoff, "round {round}");
    }
}

#[test]
fn what_cannot_get_better_is_not_tried_again() {
    let check = |events: Vec<Event>, cause: Option<&str>| {
        let mut world = World::new(1);
        for event in events {
            world.give(event);
        }
        assert_eq!((world.state(), world.machine.deadline()), (WorkerState::Failed, None));
        assert_eq!(world.machine.cause(), cause);
    };
    check(vec![Event::Spawned, Event::Exited(ExitKind::Code(65))], None);
    check(vec![Event::Spawned, Event::Hello(PROTOCOL_VERSION), Event::Exited(ExitKind::Code(64))], None);
    check(
        vec![Event::Spawned, Event::Hello(99), Event::Exited(KILLED)],
        Some(&format!("worker speaks protocol version 99, gateway {}", shared::ipc::PROTOCOL_VERSION)),
    );
    let missing = "cannot start worker x: not found";
    check(vec![Event::SpawnFailed(missing.to_owned(), ErrorKind::NotFound)], Some(missing));
}

#[test]
fn deadlines_kill_what_does_not_answer() {
    let mut world = World::new(1);
    world.give(Event::Spawned);
    assert_eq!(world.wait(), timing().handshake);
    assert_eq!(world.tick(), [Action::Disconnect, Action::Kill]);
    assert_eq!(world.exit(KILLED)[1..], [Action::Release(Blame::Suspect)]);
    assert_eq!(world.machine.cause(), Some("no handshake within 10s"));
    world.tick();
    world.give(Event::Spawned);
    world.give(Event::Hello(PROTOCOL_VERSION));
    world.now += Duration::from_secs(19);
    world.give(Event::Progress);
    assert_eq!(world.wait(), timing().load_silence, "progress extends the deadline");
    assert_eq!(world.tick(), [Action::Disconnect, Action::Kill]);
}

#[test]
fn a_broken_connection_waits_for_the_exit_status_before_it_kills() {
    let mut world = World::new(1);
    world.come_up();
    assert_eq!(world.give(Event::Lost(Loss::Closed)), [Action::Disconnect]);
    assert_eq!((world.state(), world.wait()), (WorkerState::Crashed, timing().exit_grace));
    assert_eq!(world.tick(), [Action::Kill]);
    assert_eq!(world.exit(KILLED)[1..], [Action::Release(Blame::Suspect)], "our own kill clears nobody");
}

#[test]
fn a_drain_finishes_then_terminates_then_kills() {
    let mut world = World::new(1);
    world.come_up();
    assert_eq!(world.give(Event::Drain(Duration::from_secs(9))), [Action::SendDrain]);
    assert_eq!(world.wait(), Duration::from_secs(9));
    assert_eq!(world.give(Event::Idle), [Action::Terminate]);
    assert_eq!(world.tick(), [Action::Disconnect, Action::Kill]);
    world.exit(KILLED);
    assert_eq!(world.state(), WorkerState::Stopped);
}

#[test]
fn a_restart_on_demand_drains_and_starts_again_at_once_without_blame() {
    let mut world = World::new(1);
    world.come_up();
    assert_eq!(world.give(Event::Restart(Duration::from_secs(9))), [Action::SendDrain]);
    assert_eq!(world.give(Event::Idle), [Action::Terminate]);
    assert_eq!(world.exit(ExitKind::Code(0)), [Action::Disconnect, Action::Release(Blame::Innocent)]);
    assert_eq!((world.state(), world.wait()), (WorkerState::Backoff, Duration::ZERO));
    world.come_up();
    world.give(Event::Restart(Duration::from_secs(9)));
    world.tick();
    assert_eq!(world.tick(), [Action::Disconnect, Action::Kill], "one that does not end is killed");
    world.exit(KILLED);
    world.come_up();
}

#[test]
fn a_restart_tries_a_failed_worker_again_and_an_end_overrides_it() {
    let mut world = World::new(1);
    world.give(Event::Spawned);
    world.exit(ExitKind::Code(65));
    assert_eq!((world.state(), world.machine.deadline()), (WorkerState::Failed, None));
    assert_eq!(world.give(Event::Restart(Duration::ZERO)), [Action::Spawn]);
    world.come_up();
    world.give(Event::Restart(Duration::from_secs(9)));
    world.give(Event::Drain(Duration::from_secs(1)));
    assert_eq!(world.wait(), Duration::from_secs(1), "the shorter grace counts");
    world.tick();
    world.exit(ExitKind::Code(0));
    assert_eq!(world.state(), WorkerState::Stopped);
}

#[test]
fn an_attached_worker_is_connected_again_within_a_second_however_often_it_goes() {
    let mut world = World::of(Tenure::Attached, 3);
    for round in 0..30 {
        world.give(Event::Lost(Loss::Fatal("connect to socket: no such file".to_owned())));
        assert_eq!(world.state(), WorkerState::Backoff, "round {round}: no circuit");
        assert!(world.wait() <= timing().reconnect_max);
        world.tick();
    }
    world.come_up();
    let actions = world.give(Event::Lost(Loss::Closed));
    assert_eq!(actions, [Action::Disconnect, Action::Release(Blame::Suspect)]);
    assert!(world.wait() <= timing().backoff_first, "service resets the wait");
    world.come_up();
    let actions = world.give(Event::Lost(Loss::Left));
    assert_eq!(actions, [Action::Disconnect, Action::Release(Blame::Innocent)], "told to end by its manager");
}

#[test]
fn requests_are_blamed_for_a_hung_engine_and_not_for_a_process_that_was_stopped() {
    let check = |loss: Loss, blame: Blame| {
        let mut world = World::of(Tenure::Managed, 3);
        world.come_up();
        assert_eq!(world.give(Event::Lost(loss)), [Action::Disconnect, Action::Kill]);
        assert_eq!(world.exit(KILLED)[1..], [Action::Release(blame)]);
        // The next life is judged by itself.
        world.come_up();
        assert_eq!(world.exit(ExitKind::Signal(11))[1..], [Action::Release(Blame::Suspect)]);
    };
    check(Loss::Hung("no progress for 10s".to_owned()), Blame::Suspect);
    check(Loss::Silent("no answer for 10s".to_owned()), Blame::Innocent);
}

#[test]
fn an_attached_worker_is_killed_only_for_a_hang() {
    let come_up = || {
        let mut world = World::of(Tenure::Attached, 3);
        world.come_up();
        world
    };
    let actions = come_up().give(Event::Lost(Loss::Hung("no progress for 10s".to_owned())));
    assert_eq!(actions, [Action::Kill, Action::Disconnect, Action::Release(Blame::Suspect)]);
    let actions = come_up().give(Event::Lost(Loss::Silent("no answer for 10s".to_owned())));
    assert_eq!(actions, [Action::Kill, Action::Disconnect, Action::Release(Blame::Innocent)]);
    for loss in [Loss::Protocol("gap".to_owned()), Loss::Busy(None), Loss::Closed] {
        let actions = come_up().give(Event::Lost(loss));
        assert_eq!(actions, [Action::Disconnect, Action::Release(Blame::Suspect)]);
    }
    let mut world = come_up();
    world.give(Event::Drain(Duration::from_secs(3)));
    assert_eq!(world.give(Event::Idle), [Action::Disconnect, Action::Release(Blame::Innocent)]);
    assert_eq!(world.state(), WorkerState::Stopped);
}

#[test]
fn an_attached_worker_of_another_version_may_be_exchanged_at_any_time() {
    let mut world = World::of(Tenure::Attached, 3);
    world.appear();
    world.give(Event::Hello(99));
    assert_eq!((world.state(), world.wait()), (WorkerState::Failed, EXCHANGE_LOOK));
    world.come_up();
}
