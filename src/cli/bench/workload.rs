//! The workloads: what each trains, as the text of a plan, and how much arithmetic an update is.

/// A federation of virtual clients with MNIST's images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Workload {
    /// Logistic regression at many tiny clients.
    W1,
    /// The convolutional network of McMahan et al. 2017.
    W2,
    /// A perceptron.
    W3,
    /// The same with privacy for clients.
    W4,
}

/// Pixels of an image.
const PIXELS: u64 = 28 * 28;
const CLASSES: u64 = 10;
/// Images a batch.
pub(super) const BATCH: u64 = 10;

impl Workload {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::W1 => "W1",
            Self::W2 => "W2",
            Self::W3 => "W3",
            Self::W4 => "W4",
        }
    }

    pub(super) fn clients(self) -> usize {
        if self == Self::W1 { 1000 } else { 100 }
    }

    /// Clients a round.
    pub(super) fn cohort(self) -> usize {
        if self == Self::W1 { 100 } else { 10 }
    }

    /// Images of each client.
    pub(super) fn records(self) -> usize {
        if self == Self::W1 { 10 } else { 600 }
    }

    /// Rounds that take a few seconds.
    pub(super) fn rounds(self) -> u32 {
        match self {
            Self::W1 => 200,
            Self::W2 => 5,
            Self::W3 | Self::W4 => 30,
        }
    }

    /// The plan, as an operator would type it.
    pub(super) fn plan(self, rounds: u32) -> String {
        let model = match self {
            Self::W1 => "\"logistic\"",
            Self::W2 => "{ cnn = {} }",
            Self::W3 | Self::W4 => "{ mlp = { hidden = [200, 200] } }",
        };
        let (clients, cohort) = (self.clients(), self.cohort());
        let drawn = match self {
            Self::W1 | Self::W2 | Self::W3 => format!("count = {cohort}\nquorum = {cohort}\n"),
            // Its cohorts are drawn by `privacy.central.sampling`, and nothing else may bound them.
            Self::W4 => String::new(),
        };
        let mut text = format!(
            "name = \"bench\"\nrounds = {rounds}\nmodel = {model}\nstrategy = \"fedavg\"\n\
             [data.tensor]\nshape = [1, 28, 28]\ntarget = {{ classes = {CLASSES} }}\ndivide_by = 255\n\
             [training]\nepochs = 1\nbatch_size = {BATCH}\noptimizer = {{ sgd = {{ learning_rate = 0.05 }} }}\n\
             [cohort]\nclients_min = {clients}\n{drawn}\
             [evaluation]\nsites = \"none\"\ncentral = false\n"
        );
        if self == Self::W4 {
            // So little noise that ten clients a round still learn: what is measured is its making, which costs the same.
            text.push_str(&format!(
                "[update]\nnorm_max = 1.0\n[privacy.central]\ndelta = 1e-5\nepsilon_max = 1e9\n\
                 noise_multiplier = 0.01\ndenominator = {cohort}\nmetrics = \"outside_the_guarantee\"\n\
                 sampling = {{ fixed = {{ population = {clients}, sample = {cohort} }} }}\n"
            ));
        }
        text
    }

    /// Floating-point operations of the matrix products of one update: forward, gradients of the weights, and gradients of
    /// what goes into every layer but the first; two a multiplication with its addition, as im2col would do them.
    pub(super) fn flops(self, records: u64) -> u64 {
        let layers: &[u64] = match self {
            Self::W1 => &[PIXELS * CLASSES],
            Self::W2 => &[PIXELS * 25 * 32, PIXELS / 4 * 25 * 32 * 64, PIXELS / 16 * 64 * 512, 512 * CLASSES],
            Self::W3 | Self::W4 => &[PIXELS * 200, 200 * 200, 200 * CLASSES],
        };
        let all: u64 = layers.iter().sum();
        records * 2 * (3 * all - layers[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_the_convolutional_network_is_nearly_724_million_operations() {
        assert_eq!(Workload::W2.flops(BATCH), 723_845_120);
        assert_eq!(Workload::W1.flops(BATCH), 2 * 2 * 10 * 7840);
    }

    #[test]
    fn every_plan_is_consistent() {
        for workload in [Workload::W1, Workload::W2, Workload::W3, Workload::W4] {
            let plan = server::Plan::parse(&workload.plan(3)).unwrap();
            assert_eq!((plan.rounds, plan.cohort.clients_min), (3, workload.clients()));
            assert_eq!(plan.spec.privacy.central.is_some(), workload == Workload::W4);
        }
    }
}
