//! Federated k-means: Lloyd's algorithm (Lloyd 1982) over records that stay where they are.
//!
//! In a round every site assigns its records to the nearest centre, by Euclidean distance of the values as the plan makes them ready,
//! and sends for every centre the number of its records, their sum and their squared distances. The sums are exact, so the centres do
//! not depend on the order of answers, and are those that the pooled records would have. A centre without records is put beside the centre
//! whose records are spread most, one deviation away. The run ends after its last round, or when no coordinate moves by more than
//! `tolerance` in a second round of the same sites, when all were asked and none is missing: centres of other sites' records are
//! other centres, and that they are near to the last ones says nothing.
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
use privacy::chain::Digest;
use privacy::{Statistics, WORDS, WideSum};
use protocol::{
    Block, ClientId, Contribution, DType, DataSpec, Decline, LearnError, MethodWork, Metrics, Name,
    Parameters, PayloadSpec, Record, SUMS, Spec, SpecError, Standardiser, StepId, Values, Work,
};
use serde::Deserialize;
use server::methods::read_settings;
use server::workflow::{Aggregate, CohortRule, Conclusion, Effect, ExactSum, RunState, StepPlan, Workflow};
use server::{Method, MethodStep, Plan, PlannedMethod};

const NAME: Name = Name::literal("kmeans");
const VERSION: u16 = 1;
const CENTRES: Name = Name::literal("centres");
const ASSIGN: StepId = StepId::method(0);
const ASSIGN_NAME: &str = "assign";
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

    fn steps(&self) -> Vec<MethodStep> {
        let answer = PayloadSpec::one(SUMS, DType::I64, self.sums() * WORDS);
        vec![MethodStep { step: ASSIGN, name: Name::literal(ASSIGN_NAME), answer }]
    }

    fn may_oversample(&self) -> bool {
        true
    }

    fn workflow(&self, plan: &Arc<Plan>) -> Result<Box<dyn Workflow>, SpecError> {
        Ok(Box::new(Lloyd { planned: *self, plan: Arc::clone(plan), settled: false, sites: None }))
    }
}

impl Planned {
    /// How many sums a site sends: the number of records, their squared distances, and one sum a coordinate, for each centre.
    fn sums(&self) -> usize {
        self.settings.clusters.saturating_mul(self.width.saturating_add(2))
    }
}

/// The server's half.
struct Lloyd {
    planned: Planned,
    plan: Arc<Plan>,
    /// Whether a round of the same sites as the one before moved no centre.
    settled: bool,
    /// Of which sites the last centres are, where all were asked and none was missing.
    sites: Option<Digest>,
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
        let width = self.planned.width;
        let plausible = Arc::new(move |sums: &[WideSum]| plausible(sums, width));
        let sums = ExactSum::of_totals(self.planned.sums(), plausible).with_metrics();
        Some(StepPlan {
            step: ASSIGN,
            round: state.checkpoint.round.next(),
            cohort: CohortRule::Drawn,
            work: Work::Method(Arc::new(work)),
            collector: Box::new(sums),
            quorum: self.plan.cohort.quorum,
            close: self.plan.cohort.close(state.connected),
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
                let everybody = self.plan.cohort.size_of(state.connected) >= state.connected;
                let sites = (everybody && state.answers.missing == 0).then(|| digest_of(state.answers.from));
                let comparable = sites.is_some() && sites == self.sites;
                self.settled = comparable && furthest <= self.planned.settings.tolerance;
                self.sites = sites;
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
        match (&self.sites, self.settled) {
            (None, _) => Vec::new(),
            (Some(sites), settled) => format!("{}{sites}", u8::from(settled)).into_bytes(),
        }
    }

    fn recall(&mut self, memory: &[u8]) -> Result<(), String> {
        let unknown = || format!("these {} bytes are nothing that k-means remembers", memory.len());
        (self.settled, self.sites) = match memory {
            [] => (false, None),
            // Of a release that wrote down no sites.
            [1] => (true, None),
            [settled @ (b'0' | b'1'), sites @ ..] => {
                let sites = str::from_utf8(sites).ok().and_then(|sites| sites.parse().ok());
                (*settled == b'1', Some(sites.ok_or_else(unknown)?))
            }
            _ => return Err(unknown()),
        };
        Ok(())
    }
}

/// Which sites these are.
fn digest_of(sites: &[ClientId]) -> Digest {
    let names: Vec<&str> = sites.iter().map(ClientId::as_str).collect();
    Digest::of(names.join("\n").as_bytes())
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
        // Values of records are f32.
        let most = records * f64::from(f32::MAX);
        if coordinates.iter().any(|sum| sum.value().abs() > most) {
            return Err(format!("{records} records have no sums as large as those of centre {centre}"));
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
            let largest = f64::from(f32::MAX);
            centres[centre * width + coordinate] = beside.clamp(-largest, largest) as f32;
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

    fn step_name(&self, step: StepId) -> Option<&'static str> {
        (step == ASSIGN).then_some(ASSIGN_NAME)
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

#[cfg(test)]
mod tests;
