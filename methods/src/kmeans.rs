//! Federated k-means: Lloyd's algorithm (Lloyd 1982) over records that stay where they are.
//!
//! In a round every site assigns its records to the nearest centre, by Euclidean distance of the values as the plan makes them ready,
//! and sends for every centre the number of its records, their sum and their squared distances. The sums are exact, so the centres do
//! not depend on the order of answers, and are those that the pooled records would have. A centre without records is put beside the centre
//! whose records are spread most, one deviation away. The run ends after its last round, or when no coordinate moves by more than
//! `tolerance`.
//!
//! ```toml
//! [method.kmeans]
//! clusters = 3
//! ```
//!
//! What a site sends is the sum over its own records: where a single one is nearest to some centre, its values. A site says by its policy
//! whether it takes part (`tasks = ["method:kmeans"]`).

use std::sync::Arc;

use client::{MethodSite, SiteMethod};
use privacy::{Statistics, WideSum};
use protocol::{
    Block, Contribution, DataSpec, Decline, LearnError, MethodWork, Metrics, Name, Parameters, Record, SUMS,
    Spec, SpecError, Standardiser, StepId, Values, Work,
};
use serde::Deserialize;
use server::methods::read_settings;
use server::workflow::{
    Aggregate, ClosePolicy, CohortRule, Conclusion, Effect, ExactSum, RunState, StepPlan, Workflow,
};
use server::{Method, Plan, PlannedMethod};

const NAME: Name = Name::literal("kmeans");
const VERSION: u16 = 1;
const CENTRES: Name = Name::literal("centres");
const ASSIGN: StepId = StepId::method(0);
/// More centres than anybody reads.
const CLUSTERS_MAX: usize = 1000;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct KMeans;

/// `[method.kmeans]`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// Centres, from 2 to 1000.
    clusters: usize,
    /// The run ends when no coordinate of a centre moves by more than this; at least 0.
    #[serde(default = "tolerance")]
    tolerance: f64,
}

fn tolerance() -> f64 {
    1e-4
}

#[derive(Clone, Copy, Debug)]
struct Planned {
    settings: Settings,
    /// Values of a record.
    width: usize,
}

impl Method for KMeans {
    fn name(&self) -> Name {
        NAME
    }

    fn version(&self) -> u16 {
        VERSION
    }

    fn plan(&self, settings: toml::Table, data: &DataSpec) -> Result<Arc<dyn PlannedMethod>, SpecError> {
        let settings: Settings = read_settings(settings)?;
        if !(2..=CLUSTERS_MAX).contains(&settings.clusters) {
            let message = format!("{} is not from 2 to {CLUSTERS_MAX}", settings.clusters);
            return Err(SpecError::new("clusters", message));
        }
        if !(settings.tolerance.is_finite() && settings.tolerance >= 0.0) {
            return Err(SpecError::new("tolerance", format!("{} is not 0 or more", settings.tolerance)));
        }
        Ok(Arc::new(Planned { settings, width: data.input_shape().iter().product() }))
    }
}

impl PlannedMethod for Planned {
    fn shape(&self) -> Vec<usize> {
        vec![self.settings.clusters, self.width]
    }

    fn workflow(&self, plan: &Arc<Plan>) -> Result<Box<dyn Workflow>, SpecError> {
        Ok(Box::new(Lloyd { planned: *self, plan: Arc::clone(plan), settled: false }))
    }
}

/// The server's half.
struct Lloyd {
    planned: Planned,
    plan: Arc<Plan>,
    /// Whether the last round moved no centre.
    settled: bool,
}

impl Workflow for Lloyd {
    fn next(&mut self, state: &RunState<'_>) -> Option<StepPlan> {
        if self.is_finished(state) {
            return None;
        }
        if let Some(statistics) = StepPlan::statistics(&self.plan, state) {
            return Some(statistics);
        }
        let centres = Values::F32(state.checkpoint.model.values().to_vec());
        let blocks = vec![Block::new(CENTRES, centres)];
        let work = MethodWork { method: NAME, version: VERSION, numbers: Vec::new(), blocks };
        let Planned { settings: Settings { clusters, .. }, width } = self.planned;
        let plausible = Arc::new(move |sums: &[WideSum]| plausible(sums, width));
        let sums = ExactSum::of_totals(clusters * (width + 2), plausible).with_metrics();
        Some(StepPlan {
            step: ASSIGN,
            round: state.checkpoint.round.next(),
            cohort: CohortRule::Drawn,
            work: Work::Method(Arc::new(work)),
            collector: Box::new(sums),
            quorum: self.plan.cohort.quorum,
            close: ClosePolicy::All,
            central: false,
            is_round: true,
        })
    }

    fn concluded(&mut self, step: StepId, aggregate: Aggregate, state: &RunState<'_>) -> Conclusion {
        let effect = match aggregate {
            Aggregate::Totals(totals) if step == StepId::STATISTICS => {
                Standardiser::from_totals(&totals).map_or(Effect::Nothing, Effect::Standardise)
            }
            Aggregate::Totals(totals) => {
                let before = state.checkpoint.model.values();
                let centres = moved(before, &totals, self.planned.width);
                let distance = |(old, new): (&f32, &f32)| (f64::from(*new) - f64::from(*old)).abs();
                let furthest = before.iter().zip(&centres).map(distance).fold(0.0, f64::max);
                self.settled = furthest <= self.planned.settings.tolerance;
                Effect::SetModel(Parameters::new(centres))
            }
            _ => Effect::Nothing,
        };
        Conclusion { effect, is_round_over: true }
    }

    /// Of all records of the round, whoever told metrics: the sums have them.
    fn measured(&self, step: StepId, aggregate: &Aggregate) -> Option<Metrics> {
        let Aggregate::Totals(totals) = aggregate else { return None };
        if step != ASSIGN {
            return None;
        }
        let sums = || of_centres(totals, self.planned.width);
        let records: f64 = sums().map(|(count, ..)| count.value()).sum();
        let spread: f64 = sums().map(|(_, spread, _)| spread.value()).sum();
        let loss = spread / records;
        loss.is_finite().then(|| Metrics { loss, examples: records as u64, ..Metrics::default() })
    }

    fn is_finished(&self, state: &RunState<'_>) -> bool {
        self.settled || state.checkpoint.round.0 >= self.plan.rounds
    }

    fn memory(&self) -> Vec<u8> {
        if self.settled { vec![1] } else { Vec::new() }
    }

    fn recall(&mut self, memory: &[u8]) -> Result<(), String> {
        self.settled = match memory {
            [] => false,
            [1] => true,
            other => return Err(format!("k-means remembers one byte, and {} are stored", other.len())),
        };
        Ok(())
    }
}

/// The sums of one centre: the number of its records, their squared distances, and one sum a coordinate.
fn of_centres(sums: &[WideSum], width: usize) -> impl Iterator<Item = (&WideSum, &WideSum, &[WideSum])> {
    sums.chunks_exact(width + 2).map(|sums| (&sums[0], &sums[1], &sums[2..]))
}

/// Whether a site's records can have these sums.
fn plausible(sums: &[WideSum], width: usize) -> Result<(), String> {
    for (centre, (count, spread, coordinates)) in of_centres(sums, width).enumerate() {
        let records = count.value();
        if records < 0.0 || records.fract() != 0.0 || spread.value() < 0.0 {
            return Err(format!("no records have the count or the distances that centre {centre} came with"));
        }
        if records == 0.0 && coordinates.iter().chain([spread]).any(|sum| sum.value() != 0.0) {
            return Err(format!("centre {centre} has sums without a record"));
        }
    }
    Ok(())
}

/// The centres that follow from the sums over all sites.
fn moved(before: &[f32], totals: &[WideSum], width: usize) -> Vec<f32> {
    let mut spreads: Vec<f64> = of_centres(totals, width).map(|(_, spread, _)| spread.value()).collect();
    let counts: Vec<f64> = of_centres(totals, width).map(|(count, ..)| count.value()).collect();
    let mut centres = before.to_vec();
    for (centre, (_, _, sums)) in
        of_centres(totals, width).enumerate().filter(|(centre, _)| counts[*centre] > 0.0)
    {
        let own = &mut centres[centre * width..][..width];
        own.iter_mut().zip(sums).for_each(|(value, sum)| *value = (sum.value() / counts[centre]) as f32);
    }
    for centre in (0..counts.len()).filter(|centre| counts[*centre] == 0.0) {
        let widest = (0..spreads.len()).max_by(|one, other| spreads[*one].total_cmp(&spreads[*other]));
        let Some(widest) = widest.filter(|widest| spreads[*widest] > 0.0) else { continue };
        let deviation = (spreads[widest] / counts[widest] / width as f64).sqrt();
        for coordinate in 0..width {
            // Several that begin beside one centre go different ways.
            let sign = if (centre >> (coordinate % 8)) & 1 == 0 { 1.0 } else { -1.0 };
            let beside = f64::from(centres[widest * width + coordinate]) + sign * deviation;
            centres[centre * width + coordinate] = beside as f32;
        }
        spreads[widest] /= 2.0;
    }
    centres
}

impl SiteMethod for KMeans {
    fn name(&self) -> Name {
        NAME
    }

    fn version(&self) -> u16 {
        VERSION
    }

    fn perform(&self, work: &MethodWork, site: &mut MethodSite<'_>) -> Result<Contribution, LearnError> {
        let width = site.spec.input_shape().iter().product();
        let centres = centres_of(work, site.spec, width)?;
        let mut sums = vec![0.0f64; centres.len() / width * (width + 2)];
        let (mut records, mut all) = (0u64, 0.0);
        site.learner.visit_records(site.standardiser, &mut |Record { features, .. }| {
            let (centre, distance) = nearest(centres, features, width);
            let own = &mut sums[centre * (width + 2)..][..width + 2];
            own[0] += 1.0;
            own[1] += distance;
            own[2..].iter_mut().zip(features).for_each(|(sum, value)| *sum += f64::from(*value));
            (records, all) = (records + 1, all + distance);
        })?;
        if records == 0 {
            return Err(LearnError::new(Decline::Data, "the site has no training records"));
        }
        let wide = sums.into_iter().map(WideSum::of).collect::<Result<Vec<_>, _>>();
        let wide = wide.map_err(|error| LearnError::new(Decline::NotFinite, error.to_string()))?;
        let words = Statistics::encode(&wide).into_words();
        let metrics = Metrics { loss: all / records as f64, examples: records, ..Metrics::default() };
        let blocks = vec![Block::new(SUMS, Values::I64(words))];
        Ok(Contribution { metrics: Some(metrics), ..Contribution::of(blocks) })
    }
}

fn centres_of<'a>(work: &'a MethodWork, spec: &Spec, width: usize) -> Result<&'a [f32], LearnError> {
    let refused = |message: String| Err(LearnError::new(Decline::Unsupported, message));
    match work.block(&CENTRES) {
        Some(Values::F32(centres)) if centres.len() <= CLUSTERS_MAX * width && centres.len() % width == 0 => {
            if centres.is_empty() || !centres.iter().all(|value| value.is_finite()) {
                return refused("the centres that the server sent are not finite, or none".into());
            }
            Ok(centres)
        }
        _ => refused(format!("no centres of records with the shape {:?} came", spec.input_shape())),
    }
}

/// The centre that is nearest, of equals the first, and the squared distance.
fn nearest(centres: &[f32], record: &[f32], width: usize) -> (usize, f64) {
    let square = |(centre, value): (&f32, &f32)| (f64::from(*value) - f64::from(*centre)).powi(2);
    let distances =
        centres.chunks_exact(width).map(|centre| centre.iter().zip(record).map(square).sum::<f64>());
    distances.enumerate().fold(
        (0, f64::INFINITY),
        |best, (centre, distance)| {
            if distance < best.1 { (centre, distance) } else { best }
        },
    )
}
