//! What of a plan matters to an enumeration. Every struct is taken apart field by field and every enum arm by arm, so that an
//! option that is added does not compile here before somebody has said what it does to a release.

use privacy::accounting::Relation;
use protocol::{
    BroadcastCodec, CentralPrivacy, Clipping, MetricsRule, NoiseCorrelation, PrivacySpec, Sampling, Spec,
    UpdateCodec, UpdateSpec, Weighting,
};
use server::{CohortPlan, CohortSize, Plan};

/// What is enumerated.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) central: CentralPrivacy,
    pub(crate) relation: Relation,
    pub(crate) delta: f64,
    pub(crate) sampling: Sampling,
    /// How many tensors of one value each an update has, so that per-layer clipping has something to clip.
    pub(crate) tensors: usize,
    /// Whether a vote is part of a release.
    pub(crate) votes: bool,
    /// The largest number of examples that counts; 1 where all clients count the same.
    pub(crate) weight_max: u32,
    pub(crate) independent: bool,
}

/// Every part of a plan is named here, so that a new one is judged; those that are not looked at are no matter of what is released.
fn all_of(plan: &Plan) -> &Plan {
    let Plan {
        name: _,
        rounds: _,
        spec: _,
        strategy: _,
        cohort: _,
        schedule: _,
        evaluation: _,
        method: _,
        aggregation: _,
    } = plan;
    plan
}

impl Case {
    /// The case of a plan that `check` has accepted.
    pub(crate) fn of(plan: &Plan) -> Self {
        // Names, models, data, training and schedules decide what updates are: the enumeration takes the worst ones. A rule that sees every
        // update is refused beside a promise.
        let Plan { spec, cohort, .. } = all_of(plan);
        let Spec {
            model: _,
            learner: _,
            data: _,
            training: _,
            update,
            personal_layers: _,
            proximal_mu: _,
            cohort_max: _,
            evaluation_records: _,
            privacy,
        } = &**spec;
        let PrivacySpec { central, local: None, examples: None } = privacy else {
            panic!("the promises of sites are enumerated on their own");
        };
        let central = central.as_ref().unwrap();
        let CentralPrivacy {
            population: _,
            relation,
            delta,
            epsilon_max: _,
            noise_multiplier: _,
            rounds: _,
            // A public constant by which the noised sum is divided: `denominators_are_post_processing`.
            denominator: _,
            sampling,
            noise,
            clipping,
            metrics,
            clients_min: _,
        } = central;
        match metrics {
            // Nothing is told; what is told is outside, as the statement says.
            MetricsRule::Off | MetricsRule::OutsideTheGuarantee => {}
        }
        // Caps, quorums, deadlines and failures act through the coordinator, which is played. A surplus and a grace have no place beside
        // secret chance: the plan refuses them.
        let CohortPlan {
            clients_min: _,
            size,
            quorum: _,
            deadline: _,
            grace: _,
            oversample: _,
            failures_max: _,
        } = cohort;
        match size {
            CohortSize::Fraction(_) | CohortSize::Count(_) => {}
        }
        let (tensors, votes) = match clipping {
            Clipping::Fixed => (1, false),
            Clipping::PerLayer => (2, false),
            Clipping::Adaptive { quantile: _, rate: _, count_noise: _, norm_min: _, norm_max: _ } => {
                (1, true)
            }
        };
        let independent = match noise {
            NoiseCorrelation::Independent => true,
            NoiseCorrelation::Tree | NoiseCorrelation::Banded { weights: _ } => false,
        };
        let weight_max = Self::weight_max_of(update);
        let (relation, delta, sampling) = (*relation, *delta, *sampling);
        Self { central: central.clone(), relation, delta, sampling, tensors, votes, weight_max, independent }
    }

    fn weight_max_of(update: &UpdateSpec) -> u32 {
        let UpdateSpec { norm_max: _, weights, weight_max, codec, broadcast } = update;
        match codec {
            // Whatever the codec gives back is admitted only within the norm.
            UpdateCodec::Exact
            | UpdateCodec::Packed
            | UpdateCodec::F16
            | UpdateCodec::Bf16
            | UpdateCodec::Int8
            | UpdateCodec::TopK { fraction: _ } => {}
        }
        match broadcast {
            // The model is released already.
            BroadcastCodec::Exact | BroadcastCodec::F16 | BroadcastCodec::Bf16 => {}
        }
        match weights {
            Weighting::Examples => *weight_max,
            Weighting::Uniform => 1,
        }
    }

    /// Whether cohorts are drawn by chance.
    pub(crate) fn is_drawn(&self) -> bool {
        match self.sampling {
            Sampling::Poisson { rate: _ } | Sampling::Fixed { population: _, sample: _ } => true,
            Sampling::Availability { participations_max: _, separation_min: _ } => false,
        }
    }

    /// The chance of drawing this cohort among `enrolled` clients.
    pub(crate) fn chance_of(&self, cohort: usize, enrolled: usize) -> f64 {
        match self.sampling {
            Sampling::Poisson { rate } => {
                rate.powi(cohort as i32) * (1.0 - rate).powi((enrolled - cohort) as i32)
            }
            Sampling::Fixed { population: _, sample } => {
                let choose = |from: usize, some: usize| {
                    (0..some).map(|i| (from - i) as f64 / (i + 1) as f64).product::<f64>()
                };
                if cohort as u64 == sample { 1.0 / choose(enrolled, cohort) } else { 0.0 }
            }
            Sampling::Availability { participations_max: _, separation_min: _ } => 1.0,
        }
    }
}
