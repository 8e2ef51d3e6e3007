//! From a plan and a coordinator that is played to the exact distribution of a release, and to what was reserved for it.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use privacy::accounting::{Event, Mechanism, Relation};
use privacy::chain::Link;
use privacy::ledger::{Ledger, Noised};
use privacy::{Encoded, Lattice};
use protocol::{Sampling, Spec};
use server::Plan;

use crate::case::Case;
use crate::exact::{Axis, Cells, Outcome};
use crate::grid::{Options, is_thorough};
use crate::stage::{Conduct, Played, Round, Script};

/// Clients of a federation; the first is the one whose privacy is in question.
pub(crate) const CLIENTS: usize = 3;
/// More examples than any plan counts.
pub(crate) const MANY: u64 = 1 << 40;

/// A plan that was accepted, and what its coordinator does.
pub(crate) struct Book<'a> {
    plan: &'a Arc<Plan>,
    pub(crate) case: &'a Case,
    noised: OnceCell<Noised>,
}

/// One pair of neighbouring populations.
pub(crate) struct Release {
    pub(crate) what: String,
    pub(crate) cells: Cells,
    pub(crate) allowance: f64,
}

impl<'a> Book<'a> {
    pub(crate) fn of(plan: &'a Arc<Plan>, case: &'a Case) -> Self {
        Self { plan, case, noised: OnceCell::new() }
    }

    /// The same plan for a coordinator that is played often: at a delta that the slower accountant does not answer, and with
    /// even coins, so that every cohort is drawn soon. Neither changes what a cohort does.
    fn for_play(&self, even: bool) -> Arc<Plan> {
        let mut plan = (**self.plan).clone();
        let mut spec: Spec = (*plan.spec).clone();
        let central = spec.privacy.central.as_mut().unwrap();
        central.delta = 1e-13;
        if let Sampling::Poisson { rate } = &mut central.sampling
            && even
        {
            *rate = 0.5;
        }
        if self.case.is_drawn() {
            // As many rounds as it takes until enough of them are released.
            (plan.rounds, plan.cohort.failures_max) = (1_000_000, 1_000_000);
        }
        plan.spec = Arc::new(spec);
        Arc::new(plan)
    }

    fn tensors(&self) -> Vec<usize> {
        vec![1; self.case.tensors]
    }

    fn script<'s>(&self, plan: &'s Arc<Plan>, clients: Vec<Conduct>) -> Script<'s> {
        Script {
            plan,
            run: 1,
            seed: 1,
            seeded: false,
            clients,
            first_is_there: Vec::new(),
            backwards: false,
            rounds: 1,
            releases: usize::MAX,
            tensors: self.tensors(),
        }
    }

    /// Plays until `count` rounds are released and reserved, after what is charged in `before`.
    pub(crate) fn play_reserved(&self, count: usize, seeded: bool, before: &[Link]) -> Played {
        let plan = self.for_play(false);
        let clients = vec![update(1.0, 1); CLIENTS];
        let mut script = self.script(&plan, clients);
        script.run = 7 + before.len() as u64;
        (script.seeded, script.rounds, script.releases) = (seeded, usize::MAX, count);
        script.play(before)
    }

    /// What `count` releases are reserved as.
    pub(crate) fn reserved(&self, count: usize) -> Played {
        self.play_reserved(count, false, &[])
    }

    /// What a played run has reserved.
    pub(crate) fn events(&self, played: &Played) -> Vec<Event> {
        played.links.values().flat_map(|links| Ledger::replay(links).unwrap().events()).collect()
    }

    /// How a release is noised.
    pub(crate) fn noised(&self) -> &Noised {
        self.noised.get_or_init(|| self.reserved(1).noised.unwrap())
    }

    fn lattice(&self) -> Lattice {
        let spec = &self.plan.spec;
        spec.lattice_within(spec.update.norm_max, &self.tensors()).unwrap()
    }

    /// What an update adds to the sum on the plan's own lattice.
    fn points(&self, value: f32, examples: u64) -> Vec<i64> {
        let lattice = self.lattice();
        let clipped = lattice.clip(vec![value; self.case.tensors]).unwrap();
        let encoded = Encoded::encode(&clipped, lattice.weigh(examples), &lattice).unwrap();
        let weight = i64::from(encoded.weight().value());
        encoded.points().iter().map(|point| i64::from(*point) * weight).collect()
    }

    /// Points of the small lattice that the largest contribution to one coordinate is; a multiple of every weight. Where more
    /// than one coordinate is enumerated, as few as leave the noise nineteen points wide in the large grid.
    fn size(&self) -> i64 {
        let wide = self.case.central.noise_multiplier.value() * 12.0 >= 19.0;
        match (self.case.tensors > 1 || self.case.votes, is_thorough() && !wide) {
            (false, _) => 60,
            (true, true) => 24,
            (true, false) => 12,
        }
    }

    /// The noise of every coordinate on the small lattice: of the tensors, then of the votes.
    pub(crate) fn axes(&self) -> Vec<Axis> {
        let noised = self.noised();
        let size = self.size() as f64;
        let largest = self.points(9.0, MANY);
        let sigma = noised.sigma.value();
        let of = |points: &i64| Axis { sigma: sigma / *points as f64 * size, stands_for_a_finer_one: true };
        let mut axes: Vec<Axis> = largest.iter().map(of).collect();
        if let Some(votes) = noised.vote_sigma {
            let unit = self.vote_size() as f64;
            axes.push(Axis { sigma: votes.value() * unit, stands_for_a_finer_one: votes.parts().1 > 1 });
        }
        axes
    }

    /// Points of the small lattice that a vote is; one where votes are counted as they are.
    fn vote_size(&self) -> i64 {
        match self.noised().vote_sigma {
            Some(votes) if votes.parts().1 > 1 => self.size(),
            _ => 1,
        }
    }

    /// What a client adds, on the small lattice.
    pub(crate) fn contribution(&self, conduct: &Conduct) -> Vec<i64> {
        let Conduct::Update { value, vote, examples } = conduct else { return self.zero() };
        let largest = self.points(9.0, MANY);
        let scaled = |(points, largest): (i64, &i64)| {
            let exact = points as f64 / *largest as f64 * self.size() as f64;
            assert!((exact - exact.round()).abs() < 1e-3, "{exact}: the small lattice does not fit");
            exact.round() as i64
        };
        let mut sums: Vec<i64> =
            self.points(*value, *examples).into_iter().zip(&largest).map(scaled).collect();
        if self.case.votes {
            sums.push(i64::from(*vote) * self.vote_size());
        }
        sums
    }

    pub(crate) fn zero(&self) -> Vec<i64> {
        vec![0; self.case.tensors + usize::from(self.case.votes)]
    }

    /// The most by which one client moves a release under the plan's relation.
    pub(crate) fn shift(&self) -> Vec<i64> {
        let whole = self.contribution(&update(9.0, 1));
        match self.case.relation {
            Relation::AddOrRemoveOne | Relation::ZeroOut => whole,
            Relation::ReplaceOne => whole.into_iter().map(|sum| 2 * sum).collect(),
        }
    }

    /// The first round for every cohort that can be drawn from `clients`, played.
    fn cohorts(&self, clients: &[Conduct], backwards: bool) -> Vec<(f64, Round)> {
        let plan = self.for_play(true);
        let enrolled = clients.len();
        let mut found: BTreeMap<Vec<usize>, (f64, Round)> = BTreeMap::new();
        for seed in 0..2000 {
            let mut script = self.script(&plan, clients.to_vec());
            (script.seed, script.backwards) = (seed, backwards);
            let Some(round) = script.play(&[]).rounds.into_iter().next() else { break };
            let chance = self.case.chance_of(round.asked.len(), enrolled);
            found.entry(round.asked.clone()).or_insert((chance, round));
            let seen: f64 = found.values().map(|(chance, _)| chance).sum();
            let possible = match self.case.sampling {
                Sampling::Poisson { .. } => found.len() == 1 << enrolled,
                Sampling::Fixed { .. } | Sampling::Availability { .. } => seen > 1.0 - 1e-9,
            };
            if possible {
                return found.into_values().collect();
            }
        }
        // A federation that is smaller than the plan's population never begins.
        Vec::new()
    }

    fn outcomes(&self, cohorts: &[(f64, Round)], contributions: &[Vec<i64>]) -> Vec<Outcome> {
        let of = |(chance, round): &(f64, Round)| {
            let sums = round.released.then(|| {
                let mut sums = self.zero();
                for client in &round.accepted {
                    sums.iter_mut().zip(&contributions[*client]).for_each(|(sum, more)| *sum += more);
                }
                sums
            });
            Outcome { chance: *chance, sums }
        };
        // Cohorts that release the same are one outcome.
        let mut all: Vec<Outcome> = Vec::new();
        for outcome in cohorts.iter().filter(|(chance, _)| *chance > 0.0).map(of) {
            match all.iter_mut().find(|known| known.sums == outcome.sums) {
                Some(known) => known.chance += outcome.chance,
                None => all.push(outcome),
            }
        }
        all
    }
}

/// An update of full length in the direction of `value`, of the largest weight.
pub(crate) fn update(value: f32, vote: i8) -> Conduct {
    Conduct::Update { value, vote, examples: MANY }
}

/// What the others may do.
fn others(case: &Case) -> Vec<[Conduct; CLIENTS - 1]> {
    let light = |value: f32, vote| Conduct::Update { value, vote, examples: 1 };
    let mut all = vec![[update(0.0, 1), update(0.0, -1)], [update(-9.0, 1), update(-9.0, 1)]];
    if case.weight_max > 1 {
        all.push([light(9.0, -1), light(-9.0, -1)]);
    }
    if is_thorough() {
        all.extend([[update(9.0, 1), update(9.0, 1)], [update(9.0, -1), update(-9.0, 1)]]);
    }
    all
}

/// Every pair of neighbouring populations, by what may be the case for the first client.
pub(crate) fn releases_of(book: &Book<'_>) -> Vec<Release> {
    let case = book.case;
    let axes = book.axes();
    let allowance = axes.iter().map(|axis| axis.allowance()).sum();
    let mut releases = Vec::new();
    for backwards in [false, true] {
        let all = vec![update(9.0, 1); CLIENTS];
        let with = book.cohorts(&all, backwards);
        let mut absent = all.clone();
        absent[0] = Conduct::Absent;
        let without = book.cohorts(&absent, backwards);
        let fewer = book.cohorts(&all[1..], backwards);
        for others in others(case) {
            for vote in [1, -1].into_iter().take(1 + usize::from(case.votes)) {
                let rest = others.iter().map(|conduct| book.contribution(conduct));
                let rest: Vec<Vec<i64>> = rest.collect();
                let population = |first: Vec<i64>| {
                    let mut all = vec![first];
                    all.extend(rest.clone());
                    all
                };
                let whole = population(book.contribution(&update(9.0, vote)));
                let one = book.outcomes(&with, &whole);
                let neighbours = match case.relation {
                    Relation::AddOrRemoveOne => vec![("not enrolled", book.outcomes(&fewer, &rest))],
                    Relation::ZeroOut => vec![
                        ("zero", book.outcomes(&with, &population(book.zero()))),
                        ("absent", book.outcomes(&without, &whole)),
                    ],
                    Relation::ReplaceOne => {
                        let turned = book.contribution(&update(-9.0, -vote));
                        vec![("exchanged", book.outcomes(&with, &population(turned)))]
                    }
                };
                for (name, other) in neighbours {
                    let what = format!("{name}, others {others:?}, vote {vote}, backwards {backwards}");
                    let cells = Cells::of_release(&one, &other, &axes);
                    releases.push(Release { what, cells, allowance });
                }
            }
        }
        // Without a cap the order of answers changes nothing.
        if with.iter().all(|(_, round)| round.accepted.len() == round.asked.len()) {
            break;
        }
    }
    releases
}

/// In which rounds a client may take part, as the coordinator lets it, whenever it is there.
pub(crate) fn schedules(book: &Book<'_>, rounds: usize) -> Vec<(Vec<bool>, Played)> {
    let plan = book.for_play(false);
    let mut found: BTreeMap<Vec<bool>, Played> = BTreeMap::new();
    for pattern in 0..1_u32 << rounds {
        let mut script = book.script(&plan, vec![update(9.0, 1); CLIENTS]);
        script.rounds = rounds;
        script.first_is_there = (0..rounds).map(|round| pattern >> round & 1 == 1).collect();
        // One cohort of a seed may leave the client out where the plan has a cap; every seed is another try.
        for seed in 0..8 {
            script.seed = seed;
            let played = script.play(&[]);
            let takes_part = |round: &Round| round.released && round.accepted.contains(&0);
            let schedule: Vec<bool> = played.rounds.iter().map(takes_part).collect();
            found.entry(schedule).or_insert(played);
        }
    }
    found.into_iter().collect()
}

/// Independent noise, whoever is there.
pub(crate) fn availability_faults(book: &Book<'_>, options: &Options) -> Vec<String> {
    let (axes, shift) = (book.axes(), book.shift());
    let outcome = |sums: Vec<i64>| [Outcome { chance: 1.0, sums: Some(sums) }];
    let allowance: f64 = axes.iter().map(|axis| axis.allowance()).sum();
    let cells = Cells::of_release(&outcome(shift), &outcome(book.zero()), &axes);
    let mut faults = Vec::new();
    for (schedule, played) in schedules(book, options.rounds as usize) {
        let count = schedule.iter().filter(|takes_part| **takes_part).count();
        let what = format!("{options:?} {schedule:?}");
        let events = book.events(&played);
        faults.extend(crate::judge(
            &what,
            &vec![&cells; count],
            book.case,
            &events,
            allowance * count as f64,
        ));
    }
    faults
}

/// An event as one who sees the cohort must count it.
pub(crate) fn known_cohort(event: &Event) -> Event {
    let mechanism = match event.mechanism() {
        Mechanism::PoissonGaussian { noise_multiplier, sampling_rate: _ }
        | Mechanism::WithoutReplacementGaussian { noise_multiplier, population: _, sample: _ }
        | Mechanism::Gaussian { noise_multiplier } => Mechanism::Gaussian { noise_multiplier },
        Mechanism::TruncatedPoissonGaussian {
            noise_multiplier,
            sampling_rate: _,
            population: _,
            sample_max: _,
        } => Mechanism::Gaussian { noise_multiplier: noise_multiplier / 2.0 },
        tree
        @ Mechanism::Tree { noise_multiplier: _, steps: _, participations_max: _, separation_min: _ } => tree,
    };
    Event::new(mechanism, event.count()).unwrap()
}
