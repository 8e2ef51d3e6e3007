//! External learners from end to end: a server, sites and learners, each a process of its own. The learner is `external/tests/player.rs`, which
//! this program plays itself when it is started as one.
//!
//! `CONSORTIA_THOROUGH=1` kills more often and tries more seeds.
#![cfg(target_os = "linux")]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that cannot go on says so by panicking, and waits for real processes"
)]

#[path = "learners/badly.rs"]
mod badly;
#[path = "support/chance.rs"]
mod chance;
#[path = "learners/declined.rs"]
mod declined;
#[allow(dead_code, reason = "operators here need less of it than sites elsewhere")]
#[path = "hostile/intruder.rs"]
mod intruder;
#[path = "learners/killed.rs"]
mod killed;
#[path = "../external/tests/player.rs"]
mod player;
#[path = "support/processes.rs"]
mod processes;
#[path = "learners/same.rs"]
mod same;
#[path = "learners/settings.rs"]
mod settings;
#[path = "learners/stage.rs"]
mod stage;
#[path = "learners/starts.rs"]
mod starts;
#[path = "learners/surroundings.rs"]
mod surroundings;

/// What sites and simulations start: this program, told to run this test alone.
const LEARNER: &str = "a_learner_is_played_where_an_agent_asks_for_one";

#[test]
fn a_learner_is_played_where_an_agent_asks_for_one() {
    if std::env::var_os("CONSORTIA_LEARNER").is_some() && std::env::var_os("BEHAVIOUR").is_some() {
        player::main();
    }
}

/// Whether there is time for more than a glance.
fn is_thorough() -> bool {
    std::env::var_os("CONSORTIA_THOROUGH").is_some()
}
