//! What an operator's program and the server say to each other, over the same port, with an operator's certificate.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{ClientId, Metrics, RunId, Standardiser};

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum AdminRequest {
    /// Take this plan into the queue of runs.
    Submit {
        /// The text of a `federation.toml`.
        plan_toml: String,
        /// Makes the run a seeded one, with this seed.
        seed: Option<u64>,
    },
    /// List the runs, newest first.
    List,
    /// Send the run's summary now and whenever it changes, until it has ended.
    Watch {
        /// The run; the newest when `None`.
        run: Option<RunId>,
    },
    /// Make an invite for each of these sites.
    Invite {
        /// Who may become members.
        sites: Vec<ClientId>,
        /// Where they find the servers, `host:port`.
        servers: Vec<String>,
        /// For how long the invites are good.
        seconds: u64,
    },
    /// List everybody who was ever invited.
    Members,
    /// Make the certificates and invites of this site void, from now on.
    Revoke {
        /// Which site.
        site: ClientId,
    },
    /// Let a run that has not ended pause, go on or stop.
    Control {
        /// Which run.
        run: RunId,
        /// What is wanted of it.
        control: Control,
    },
    /// Send what the audit log says of a run.
    Log {
        /// The run; the newest when `None`.
        run: Option<RunId>,
    },
    /// List the models of a run.
    Models {
        /// The run; the newest when `None`.
        run: Option<RunId>,
    },
    /// Send a model's file.
    Model {
        /// The run; the newest when `None`.
        run: Option<RunId>,
        /// Which of its models.
        choice: ModelChoice,
    },
    /// Give this site no task and take no update of it, from now on; it stays a member and may stay connected.
    Quarantine {
        /// Which site.
        site: ClientId,
        /// Why; the site is told so. May be empty.
        reason: String,
    },
    /// End a site's quarantine.
    Release {
        /// Which site.
        site: ClientId,
    },
    /// Let in who waits with an invite of this site.
    Approve {
        /// Which site.
        site: ClientId,
        /// The phrase of its key, as the site has said it; needed where several wait.
        phrase: Option<String>,
    },
    /// Keep out who waits with an invite of this site, and take the invite back.
    Refuse {
        /// Which site.
        site: ClientId,
        /// The phrase of a key; everybody who waits when `None`.
        phrase: Option<String>,
    },
    /// Send the plan of a run. Servers of earlier releases answer with an error.
    Plan {
        /// The run; the newest when `None`.
        run: Option<RunId>,
    },
    /// List the models of a run that earlier rounds have made than this one.
    ModelsBefore {
        /// The run; the newest when `None`.
        run: Option<RunId>,
        /// The round.
        before: u32,
    },
    /// Take this plan into the queue of runs, which begins with a file: its values follow raw, f32 in little-endian order, in the order of
    /// the tensors. Servers of earlier releases answer with an error.
    SubmitStart {
        /// The text of a `federation.toml` whose model is external.
        plan_toml: String,
        /// Makes the run a seeded one, with this seed.
        seed: Option<u64>,
        /// Names and shapes of the file's tensors.
        tensors: Vec<(String, Vec<u64>)>,
        /// Values that follow.
        model_len: u64,
    },
}

/// What an operator wants of a run that has not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// No new round opens; the one that is open is brought to its end.
    Pause,
    /// Go on.
    #[default]
    Resume,
    /// End as soon as the open round and its evaluation are over; the model stays.
    Stop,
    /// End at once; what the open round has collected is thrown away, the model of the last release stays.
    StopNow,
}

/// Which model of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModelChoice {
    /// The one of the last release.
    #[default]
    Last,
    /// The one that evaluations found best.
    Best,
    /// The one that this round made; 0 is the first.
    Round(u32),
}

/// What the server answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum AdminReply {
    /// The run is in the queue.
    Submitted {
        /// Its id.
        run: RunId,
    },
    /// The runs, newest first.
    Runs(Vec<RunSummary>),
    /// A watched run as it is now.
    Run(RunSummary),
    /// The request cannot be served.
    Error(String),
    /// Fresh invites, to be handed over.
    Invites(Vec<InviteText>),
    /// Everybody who was ever invited, by name.
    Members(Vec<Member>),
    /// It is done.
    Done,
    /// Lines of the audit log, oldest first; as many of the last ones as fit.
    Log(Vec<String>),
    /// The models of a run, oldest first.
    Models(Vec<ModelLine>),
    /// A model; its values follow as little-endian f32, tensor after tensor.
    Model {
        /// The run.
        run: RunId,
        /// Its line.
        line: ModelLine,
        /// What may be said about its privacy, as JSON.
        statement: String,
        /// Names and shapes of its tensors.
        tensors: Vec<(String, Vec<u64>)>,
        /// The standardisation it expects, where its plan asks for a common one.
        standardiser: Option<Standardiser>,
        /// Values that follow.
        model_len: u64,
    },
    /// The text of a plan, as it was submitted.
    Plan(String),
}

/// A model of a run for an operator's eyes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelLine {
    /// The round that made it; 0 for the first.
    pub round: u32,
    /// SHA-256 of its parameters.
    pub sha256: String,
    /// That of the model it was made from, if it is known.
    pub parent_sha256: Option<String>,
    /// What sites measured of it, in the mean.
    pub sites: Option<Metrics>,
    /// What the server measured of it.
    pub central: Option<Metrics>,
    /// What all releases of the run's population up to it amount to, at the plan's delta; none without noise.
    pub epsilon: Option<f64>,
    /// Whether the evaluations found it best.
    pub best: bool,
    /// Whether its file is still kept.
    pub kept: bool,
}

/// An invite as it is handed over. Whoever sees the text can use it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteText {
    /// Who its holder becomes.
    pub site: ClientId,
    /// The line.
    pub text: String,
    /// What to compare by telephone.
    pub phrase: String,
    /// Seconds since the Unix epoch.
    pub expires: u64,
}

impl std::fmt::Debug for InviteText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InviteText({})", self.site)
    }
}

/// A site that was invited. Times are seconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub site: ClientId,
    /// When its newest invite was made.
    pub invited: u64,
    /// When that invite expires.
    pub expires: u64,
    /// When it last got a certificate.
    pub joined: Option<u64>,
    /// Certificates that were issued then or before are void.
    pub revoked: Option<u64>,
    /// Set while it gets no task.
    pub quarantine: Option<Quarantine>,
    /// Who waits to be approved as this site: one, unless an invite is in wrong hands.
    pub waiting: Vec<Applicant>,
    /// Certificates of this name that the server has issued and that are good now, oldest first. More than one after a renewal; or since
    /// somebody else has joined as this site.
    pub certificates: Vec<Certificate>,
    /// Its connection, since the server was started.
    pub seen: Option<Seen>,
}

/// A certificate that lets its holder in. Times are seconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Its serial number, in hexadecimal digits.
    pub serial: String,
    /// From when it is good.
    pub issued: u64,
    /// Until when.
    pub expires: u64,
}

/// What a server has seen of a site. Times are seconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// When it was greeted last.
    pub since: u64,
    /// When that connection ended; `None` while it is connected.
    pub left: Option<u64>,
    /// From where it came, and how.
    pub address: String,
    /// What its program calls itself.
    pub software: String,
}

/// Somebody who has shown an invite and waits for an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applicant {
    /// What the site sees, too: made from its public key.
    pub phrase: String,
    /// When it first asked, in seconds since the Unix epoch.
    pub since: u64,
    /// When its invite ends.
    pub expires: u64,
    /// From where it first asked.
    pub address: String,
}

/// Since when and why a site gets no task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// Seconds since the Unix epoch.
    pub since: u64,
    /// In the operator's words; may be empty.
    pub reason: String,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Waits for the runs before it.
    Queued,
    /// Is being worked on.
    Running,
    /// Has done its rounds.
    Finished,
    /// Ended without doing its rounds.
    Failed,
    /// Ended because the privacy budget cannot pay for another round; the model of the last release stands.
    BudgetExhausted,
    /// Opens no new round until the operator lets it go on.
    Paused,
    /// Ends with the open round, as the operator wants.
    Stopping,
    /// Ended by the operator; the model of the last release stands.
    Stopped,
}

impl RunState {
    /// Whether the run has ended.
    pub fn is_over(self) -> bool {
        match self {
            Self::Queued | Self::Running | Self::Paused | Self::Stopping => false,
            Self::Finished | Self::Failed | Self::BudgetExhausted | Self::Stopped => true,
        }
    }

    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Failed => "failed",
            Self::BudgetExhausted => "budget exhausted",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

/// A run for an operator's eyes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    /// Its id.
    pub run: RunId,
    /// Its plan's name.
    pub name: String,
    /// Where it stands.
    pub state: RunState,
    /// One sentence on what it waits for or why it ended.
    pub message: String,
    /// Training rounds done.
    pub rounds_done: u32,
    /// Training rounds planned.
    pub rounds: u32,
    /// Whether it is a seeded run, which may not claim privacy.
    #[serde(rename = "rehearsal")]
    pub is_seeded: bool,
    /// SHA-256 of the current model, once there is one.
    pub model_sha256: String,
    /// The last 1,000 rounds, oldest first.
    pub history: Vec<RoundSummary>,
    /// Every client seen in this run.
    pub clients: Vec<ClientSummary>,
}

/// One round for an operator's eyes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundSummary {
    /// Its number; 0 is the statistics round.
    pub round: u32,
    /// Whether the model moved.
    pub released: bool,
    /// Clients asked; 0 where it is not told ([`RoundSummary::participation`]).
    pub cohort: u32,
    /// Updates that count; 0 where it is not told.
    pub answered: u32,
    /// Mean of the clients' training metrics.
    pub train: Option<Metrics>,
    /// Mean of the sites' test metrics.
    pub sites: Option<Metrics>,
    /// Metrics on the server's own file.
    pub central: Option<Metrics>,
    /// Seconds from the opening of the round to its release.
    pub seconds: f64,
    /// What all releases of the run's population up to this one amount to, at the plan's delta; none without noise.
    #[serde(default)]
    pub epsilon: Option<f64>,
    /// What external learners measured beside that.
    #[serde(default, skip_serializing_if = "FurtherMetrics::is_empty")]
    pub further: FurtherMetrics,
}

/// Means of the further metrics of a round, by the names of the plan. In JSON and other forms for people and databases; operators' frames,
/// which programs of earlier releases read, have no place for them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FurtherMetrics(Option<Box<FurtherForm>>);

/// As JSON has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FurtherForm {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    train: BTreeMap<String, f64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    sites: BTreeMap<String, f64>,
}

impl FurtherMetrics {
    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.train().is_empty() && self.sites().is_empty()
    }

    /// Of the clients' trainings, by name.
    pub fn train(&self) -> &BTreeMap<String, f64> {
        self.0.as_ref().map_or(&NOTHING, |form| &form.train)
    }

    /// Of the sites' evaluations, by name.
    pub fn sites(&self) -> &BTreeMap<String, f64> {
        self.0.as_ref().map_or(&NOTHING, |form| &form.sites)
    }

    /// Takes those of the clients' trainings.
    pub fn set_train(&mut self, train: BTreeMap<String, f64>) {
        if !train.is_empty() || self.0.is_some() {
            self.0.get_or_insert_default().train = train;
        }
    }

    /// Takes those of the sites' evaluations.
    pub fn set_sites(&mut self, sites: BTreeMap<String, f64>) {
        if !sites.is_empty() || self.0.is_some() {
            self.0.get_or_insert_default().sites = sites;
        }
    }
}

static NOTHING: BTreeMap<String, f64> = BTreeMap::new();

impl Serialize for FurtherMetrics {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !serializer.is_human_readable() {
            return serializer.serialize_unit();
        }
        match &self.0 {
            Some(form) => form.serialize(serializer),
            None => FurtherForm::default().serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for FurtherMetrics {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return <()>::deserialize(deserializer).map(|()| Self::default());
        }
        let form = FurtherForm::deserialize(deserializer)?;
        Ok(Self((form != FurtherForm::default()).then(|| Box::new(form))))
    }
}

impl RoundSummary {
    /// Clients asked, and updates that count; `None` where nobody was asked, or where it is not told: cohorts that are drawn by
    /// secret chance are not shown.
    pub fn participation(&self) -> Option<(u32, u32)> {
        (self.cohort > 0).then_some((self.cohort, self.answered))
    }

    /// Whether it was released and does not tell who took part: so are all rounds of such a run, and its clients have no counts.
    pub fn hides_participation(&self) -> bool {
        self.released && self.participation().is_none()
    }
}

/// One client in one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientSummary {
    /// Its name.
    pub client: ClientId,
    /// Whether it is connected now.
    pub connected: bool,
    /// Updates that counted.
    pub accepted: u32,
    /// Refused answers by reason.
    pub refused: Vec<(String, u32)>,
    /// Declined tasks by reason.
    pub declined: Vec<(String, u32)>,
    /// Its last test metrics.
    pub test: Option<Metrics>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{FrameKind, decode, encode};

    #[test]
    fn further_metrics_stand_in_json_and_take_no_byte_of_a_frame() {
        let mut round: RoundSummary = serde_json::from_str(
            r#"{"round": 1, "released": true, "cohort": 2, "answered": 2, "train": null, "sites": null, "central": null, "seconds": 1.0}"#,
        )
        .unwrap();
        assert!(round.further.is_empty(), "a round of an earlier release");
        let plain = encode(FrameKind::AdminReply, &round);
        round.further.set_train(BTreeMap::from([("auc".to_owned(), 0.5)]));
        round.further.set_sites(BTreeMap::from([("auc".to_owned(), 0.75)]));
        let text = serde_json::to_string(&round).unwrap();
        assert!(text.ends_with(r#""further":{"train":{"auc":0.5},"sites":{"auc":0.75}}}"#), "{text}");
        assert_eq!(serde_json::from_str::<RoundSummary>(&text).unwrap(), round);
        let framed = encode(FrameKind::AdminReply, &round);
        assert_eq!(framed, plain);
        let read: RoundSummary = decode(&framed[crate::wire::FRAME_HEAD..]).unwrap();
        assert!(read.further.is_empty() && read.round == 1);
    }
}
