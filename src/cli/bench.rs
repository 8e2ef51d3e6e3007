//! `consortia bench`: how fast this machine does what a federation is made of, each beside the machine's own limit measured
//! in the same run.
//!
//! A workload is a plan like anybody's, run by the simulator like anybody's. Absolute figures belong to one machine and one
//! hour; what may be compared is the share of the limit, and ratios within one run.

mod aggregate;
mod crowd;
mod learner;
mod limits;
mod machine;
mod people;
mod profile;
mod samples;
mod simulated;
mod steps;
mod wire;
mod workload;

use clap::Subcommand;

use super::failure::Failure;
use super::global::Global;
use workload::Workload;

/// What is measured.
#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// Tiny clients: 1,000 with 10 images, 100 a round, logistic regression.
    #[command(name = "W1", alias = "w1")]
    W1(simulated::SimulatedArgs),
    /// A convolutional network: 100 clients with 600 images, 10 a round, 1,663,370 parameters.
    #[command(name = "W2", alias = "w2")]
    W2(simulated::SimulatedArgs),
    /// A perceptron 784-200-200-10: clients as in W2.
    #[command(name = "W3", alias = "w3")]
    W3(simulated::SimulatedArgs),
    /// W3 with central clipping and exact discrete Gaussian noise.
    #[command(name = "W4", alias = "w4")]
    W4(simulated::SimulatedArgs),
    /// Time what client and server do with one update of 1,663,370 parameters, compared with copying it.
    Aggregate(aggregate::AggregateArgs),
    /// One training step (forward, backward, SGD) of several networks on one thread.
    Steps(steps::StepsArgs),
    /// Time sending a model to sites and their updates back over loopback, compared with the same bytes over plain QUIC.
    Wire(wire::WireArgs),
    /// Time a round of sites whose own programs (external learners, in Python) train nothing, compared with built-in learners.
    Learner(learner::LearnerArgs),
    /// Connect very many sites to one server: measure the memory of an idle site, and check that each is served in every round.
    Crowd(crowd::CrowdArgs),
}

/// Measures, and says what came of it: text for people, or one object.
pub(super) fn bench(command: &BenchCommand, global: &Global) -> Result<(), Failure> {
    match command {
        BenchCommand::W1(args) => simulated::measure(Workload::W1, args, global),
        BenchCommand::W2(args) => simulated::measure(Workload::W2, args, global),
        BenchCommand::W3(args) => simulated::measure(Workload::W3, args, global),
        BenchCommand::W4(args) => simulated::measure(Workload::W4, args, global),
        BenchCommand::Aggregate(args) => aggregate::measure(args, global),
        BenchCommand::Steps(args) => steps::measure(args, global),
        BenchCommand::Wire(args) => wire::measure(args, global),
        BenchCommand::Learner(args) => learner::measure(args, global),
        BenchCommand::Crowd(args) => crowd::measure(args, global),
    }
}
