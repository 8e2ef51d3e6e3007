//! Statements of version 1. They summed a ledger for the adversary of the newest plan alone, counted seeded runs, quorums and
//! caps as if chance had hidden their cohorts, and named no runs.

use privacy::accounting::{self, Event, Relation};
use privacy::chain::Digest;
use privacy::ledger::{Epsilons, Unit};
use protocol::in_plain_words;
use serde::Deserialize;

use super::{Adversary, Claim, PrivacyStatement, RunPart, STATEMENT_VERSION, StatementError, agree, words};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    #[expect(dead_code, reason = "whoever calls has read it")]
    version: u32,
    model_sha256: String,
    run: String,
    round: u32,
    software: String,
    #[serde(default)]
    void: Option<String>,
    claims: Vec<OldClaim>,
    outside: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OldClaim {
    unit: Unit,
    population: String,
    relation: Relation,
    delta: f64,
    epsilon: Epsilons,
    #[expect(dead_code, reason = "the budget was kept for another adversary")]
    epsilon_max: f64,
    events: Vec<Event>,
    releases: u64,
    #[expect(dead_code, reason = "it was that of the newest plan")]
    against: String,
    #[expect(dead_code, reason = "they were those of the newest plan")]
    assumes: Vec<String>,
    mechanism: String,
    ledger_head: Digest,
}

/// What can still be claimed of a statement whose numbers follow from its events.
pub(super) fn read(text: &str) -> Result<PrivacyStatement, StatementError> {
    let old: Statement = serde_json::from_str(text)
        .map_err(|error| StatementError::Form(in_plain_words(&error.to_string())))?;
    let Statement { model_sha256, run, round, software, void, claims, mut outside, .. } = old;
    for (claim, number) in claims.iter().zip(1..) {
        agree(number, &claim.events, claim.relation, claim.delta, claim.epsilon)?;
    }
    if !claims.is_empty() {
        outside.push(
            "what sites told the server besides updates in other runs of the population: this statement was written as \
             version 1, which does not say"
                .to_owned(),
        );
        outside.push(
            "any smaller epsilon against those who do not see who took part: version 1 also counted runs as secretly sampled \
             whose cohorts were known, capped or had a quorum"
                .to_owned(),
        );
    }
    let claims = claims.into_iter().map(OldClaim::without_sampling).collect::<Result<_, _>>()?;
    Ok(PrivacyStatement {
        version: STATEMENT_VERSION,
        model_sha256,
        run,
        round,
        software,
        void,
        claims,
        outside,
    })
}

impl OldClaim {
    fn without_sampling(self) -> Result<Claim, StatementError> {
        let Self { unit, population, relation, delta, events, releases, mechanism, ledger_head, .. } = self;
        let known = |event: Event| Event::new(event.mechanism().with_known_cohort(), event.count());
        let events: Result<Vec<Event>, _> = events.into_iter().map(known).collect();
        let events = events.map_err(|error| StatementError::Form(error.to_string()))?;
        let (relation, adversary) = (relation.with_known_cohort(), Adversary::SeesParticipants);
        let epsilon = Epsilons::from(accounting::epsilon(&events, relation, delta)?);
        let part = |event: &Event| {
            let releases = event.count();
            RunPart { run: String::new(), releases, cohorts: None, event: *event }
        };
        let mut assumes = words::assumptions_of(&[], adversary);
        assumes.push(
            "in every run of the population no client took part more often, or in rounds nearer to each other, than the \
             run's plan says"
                .to_owned(),
        );
        Ok(Claim {
            unit,
            population,
            relation,
            delta,
            epsilon,
            epsilon_max: None,
            runs: events.iter().map(part).collect(),
            events,
            releases,
            adversary,
            against: words::against_adversary(adversary).to_owned(),
            assumes,
            mechanism,
            ledger_head,
        })
    }
}
