//! What rules parse to, what is refused in which words, and when a rule strikes.

use super::*;

fn rules(text: &str) -> Vec<Rule> {
    Faults::parse(text, 0).unwrap().rules
}

fn plain(fault: Fault) -> Rule {
    Rule { fault, at_load: false, step: None, probability: None, seed: None, token: None, once: None }
}

#[test]
fn every_fault_has_its_word() {
    let check = |text: &str, fault: Fault| assert_eq!(rules(text), [plain(fault)], "{text}");
    check("die", Fault::Die(Signal::SIGKILL));
    check("die=kill", Fault::Die(Signal::SIGKILL));
    check("die=segv", Fault::Die(Signal::SIGSEGV));
    check("die=abort", Fault::Die(Signal::SIGABRT));
    check("panic", Fault::Panic);
    check("exit=3", Fault::Exit(3));
    check("hang", Fault::Hang);
    check("slow=250", Fault::Slow(Duration::from_millis(250)));
    check("alloc", Fault::OutOfMemory);
    check("alloc=blocks", Fault::OutOfBlocks);
    check("corrupt", Fault::Corrupt);
    assert_eq!(rules("load-fail"), [Rule { at_load: true, ..plain(Fault::LoadFail) }]);
}

#[test]
fn conditions_add_up_and_rules_stand_in_a_row() {
    let expected = [
        Rule { step: Some(40), once: Some("/tmp/a b".into()), ..plain(Fault::Hang) },
        Rule { probability: Some(0.01), seed: Some(7), token: Some(12), ..plain(Fault::Exit(1)) },
        Rule { at_load: true, ..plain(Fault::Die(Signal::SIGABRT)) },
    ];
    let text = " hang @step=40@ once=/tmp/a b;;exit=1@p=0.01@seed=7@token=12 ; die=abort@load;";
    assert_eq!(rules(text), expected);
    assert_eq!(rules(" ; "), []);
}

#[test]
fn what_cannot_be_read_is_named_with_what_can() {
    let check = |text: &str, expected: &str| {
        let error = Faults::parse(text, 0).unwrap_err().to_string();
        assert!(
            error.starts_with("ROCMFORGE_FAULT has rule `") && error.contains(expected),
            "{text}: {error}"
        );
    };
    check("slow=5; explode", "rule `explode`: fault `explode` is unknown, use die, die=kill");
    check("die=hup", "fault `die=hup` is unknown");
    check("exit", "`exit` is ``, it must be a number from 0 to 255");
    check("exit=256", "`exit` is `256`");
    check("slow=0", "a number from 1 to 600000");
    check("hang=5", "fault `hang=5` is unknown");
    check("die@step=0", "`step` is `0`");
    check("die@p=1.5", "`p` is `1.5`, it must be a number from 0 to 1");
    check("die@p=nan", "`p` is `nan`");
    check("die@token=-1", "`token` is `-1`");
    check("die@", "condition `` is unknown, use step=N");
    check("die@once=", "condition `once=` is unknown");
    check("die@step=1@step=2", "condition `step` is given twice");
    check("die@seed=1", "`seed` goes with `p`");
    check("load-fail@step=1", "do not go with loading");
    check("corrupt@load", "needs a running engine");
}

/// Steps of the first `steps` at which `text` strikes, over requests with these prompts.
fn strikes(text: &str, seed: u64, steps: u64, prompts: &[&[TokenId]]) -> Vec<u64> {
    let faults = Faults::parse(text, seed).unwrap();
    (1..=steps).filter(|&step| !faults.due(step, prompts.iter().copied()).is_empty()).collect()
}

#[test]
fn a_rule_strikes_when_all_its_conditions_hold() {
    let prompts: &[&[TokenId]] = &[&[1, 2], &[3]];
    assert_eq!(strikes("hang", 0, 3, prompts), [1, 2, 3]);
    assert_eq!(strikes("hang@step=2", 0, 3, prompts), [2]);
    assert_eq!(strikes("hang@token=3", 0, 2, prompts), [1, 2]);
    assert!(strikes("hang@token=4", 0, 3, prompts).is_empty());
    assert!(strikes("hang@token=3", 0, 3, &[]).is_empty());
    assert!(strikes("hang@step=2@token=4", 0, 3, prompts).is_empty());
    assert!(strikes("hang@load; load-fail", 0, 3, prompts).is_empty());
}

#[test]
fn chance_is_of_the_rate_asked_for_and_follows_its_seed() {
    let at = |text: &str, seed: u64| strikes(text, seed, 10_000, &[]);
    let struck = at("hang@p=0.1", 5).len();
    assert!((900..1100).contains(&struck), "{struck}");
    assert!(at("hang@p=0", 5).is_empty());
    assert_eq!(at("hang@p=1", 5).len(), 10_000);
    assert_ne!(at("hang@p=0.1", 5), at("hang@p=0.1", 6), "processes strike at different steps");
    assert_eq!(at("hang@p=0.1@seed=9", 5), at("hang@p=0.1@seed=9", 6));
}

#[test]
fn a_rule_with_a_file_strikes_once_over_all_processes() {
    let directory = tempfile::tempdir().unwrap();
    let text = format!("hang@step=2@once={}", directory.path().join("struck").display());
    assert_eq!(strikes(&text, 0, 3, &[]), [2]);
    assert!(strikes(&text, 0, 3, &[]).is_empty());
}

#[test]
fn what_faults_leave_to_the_caller_is_told() {
    let faults = Faults::parse("corrupt@step=1; alloc=blocks@step=2; load-fail", 0).unwrap();
    let at = |step| faults.at_step(step, std::iter::empty());
    assert_eq!(at(1), BlockSupply::Real);
    assert!(faults.take_corruption());
    assert!(!faults.take_corruption(), "one frame, not every one from now on");
    assert_eq!(at(2), BlockSupply::Refused);
    assert_eq!(at(3), BlockSupply::Real);
    assert_eq!(faults.at_load(), Err(LoadRefused));
}
