//! The table `[simulation.adversaries]` as typed, and what it may say.

use protocol::{CELL_MAX, ClientId, DataSpec, Positive, Spec, SpecError, Target};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use server::Plan;

/// The table as typed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdversariesConfig {
    /// The share of all clients that is corrupted, from 0 to below 1, rounded to the nearest number of clients; this or `count`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// How many clients are corrupted; this or `share`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// What they do.
    pub attack: Attack,
}

/// What corrupted clients do, with its settings. Norms and deviations are in units of the parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "snake_case", deny_unknown_fields)]
pub enum Attack {
    /// The update times `-scale`.
    SignFlip {
        /// By default 10: at -1 a fifth of the clients slows a mean down and does not turn it.
        #[serde(default = "ten")]
        scale: Positive,
    },
    /// Normal numbers instead of an update (Blanchard et al. 2017).
    Gaussian {
        /// Their standard deviation.
        #[serde(default = "two_hundred")]
        deviation: Positive,
    },
    /// Zeros.
    Zero {},
    /// A record of class c is trained as one of class C - 1 - c, where there are C classes.
    LabelFlip {},
    /// Every record is trained with a class drawn at random, once for the whole simulation.
    RandomLabels {},
    /// "A little is enough": the mean less z standard deviations, coordinate by coordinate (Baruch, Baruch, Goldberg 2019).
    Alie {
        /// z; by default the largest at which enough honest clients lie further out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        z: Option<Positive>,
    },
    /// The mean times `-epsilon` (Xie, Koyejo, Gupta 2020).
    InnerProduct {
        /// The factor.
        #[serde(default = "half")]
        epsilon: Positive,
    },
    /// As far from the mean as the two honest updates that differ most are from each other (Shejwalkar, Houmansadr 2021).
    MinMax {
        /// Where to.
        #[serde(default)]
        direction: Direction,
    },
    /// As far from the mean as the sum of squared distances of the most distant honest update allows (Shejwalkar, Houmansadr 2021).
    MinSum {
        /// Where to.
        #[serde(default)]
        direction: Direction,
    },
    /// The update of one honest client, again and again (Karimireddy, He, Jaggi 2022).
    Mimic {
        /// Whose, who is not corrupted then; by default, and in rounds without it, of the first by name among those that take part.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client: Option<ClientId>,
    },
    /// Records with a square of pixels in the corner are trained as one class, and the update is scaled up (Bagdasaryan et al. 2020).
    Backdoor {
        /// The class that a record with the square is to have.
        #[serde(default)]
        target: u32,
        /// The share of its records that a corrupted client changes, above 0 and at most 1.
        #[serde(default = "a_half")]
        share: f64,
        /// Pixels on each side of the square; of records without width and height, the last `side` values.
        #[serde(default = "three")]
        side: usize,
        /// The value of its pixels, after the division by `data.tensor.divide_by`.
        #[serde(default = "one")]
        value: f64,
        /// What the update is multiplied by.
        #[serde(default = "ten")]
        scale: Positive,
    },
    /// An update of this norm without clipping, as software of another make could send it. The server refuses it by its norm.
    Norm {
        /// The L2 norm.
        #[serde(default = "huge")]
        norm: Positive,
    },
}

/// The direction in which an update is moved away from the mean of the honest ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Minus the standard deviations of the coordinates.
    #[default]
    Deviation,
    /// Minus the mean, at length 1.
    Unit,
    /// Minus the signs of the mean.
    Sign,
}

fn positive(value: f64) -> Positive {
    Positive::new(value).expect("the defaults of this file are above 0")
}

fn ten() -> Positive {
    positive(10.0)
}

fn two_hundred() -> Positive {
    positive(200.0)
}

fn half() -> Positive {
    positive(0.5)
}

fn huge() -> Positive {
    positive(1e30)
}

fn a_half() -> f64 {
    0.5
}

fn one() -> f64 {
    1.0
}

fn three() -> usize {
    3
}

impl Attack {
    /// The name under which it is typed.
    pub fn name(&self) -> &'static str {
        match self {
            Self::SignFlip { .. } => "sign_flip",
            Self::Gaussian { .. } => "gaussian",
            Self::Zero {} => "zero",
            Self::LabelFlip {} => "label_flip",
            Self::RandomLabels {} => "random_labels",
            Self::Alie { .. } => "alie",
            Self::InnerProduct { .. } => "inner_product",
            Self::MinMax { .. } => "min_max",
            Self::MinSum { .. } => "min_sum",
            Self::Mimic { .. } => "mimic",
            Self::Backdoor { .. } => "backdoor",
            Self::Norm { .. } => "norm",
        }
    }

    /// Whether those who do it look at the honest updates of the round first.
    pub(crate) fn colludes(&self) -> bool {
        match self {
            Self::Alie { .. }
            | Self::InnerProduct { .. }
            | Self::MinMax { .. }
            | Self::MinSum { .. }
            | Self::Mimic { .. } => true,
            Self::SignFlip { .. }
            | Self::Gaussian { .. }
            | Self::Zero {}
            | Self::LabelFlip {}
            | Self::RandomLabels {}
            | Self::Backdoor { .. }
            | Self::Norm { .. } => false,
        }
    }

    /// Whether it is made of the differences of honest updates.
    pub(super) fn hides_in_spread(&self) -> bool {
        matches!(self, Self::Alie { .. } | Self::MinMax { .. } | Self::MinSum { .. })
    }

    /// Whether it begins with the records.
    pub(crate) fn changes_records(&self) -> bool {
        matches!(self, Self::LabelFlip {} | Self::RandomLabels {} | Self::Backdoor { .. })
    }

    fn check(&self, spec: &Spec) -> Result<(), SpecError> {
        let fault = |key: &str, message: String| {
            let key = format!("simulation.adversaries.attack.{}{key}", self.name());
            Err(SpecError::new(key, message))
        };
        if self.changes_records() && spec.external().is_some() {
            return fault("", "it changes records, which an external learner reads by itself".into());
        }
        let classes = match spec.target() {
            Target::Classes(classes) => classes,
            Target::Real if self.changes_records() => {
                return fault("", "it changes classes, and the plan's target is a real number".into());
            }
            Target::Real => 0,
        };
        let Self::Backdoor { target, share, side, value, .. } = self else { return Ok(()) };
        let DataSpec::Tensor(tensor) = &spec.data else {
            return fault("", "it changes pixels, and the plan's records are rows of a table".into());
        };
        if *target as usize >= classes {
            return fault(
                ".target",
                format!("there is no class {target}; the plan has 0 to {}", classes - 1),
            );
        }
        if !(*share > 0.0 && *share <= 1.0) {
            return fault(".share", format!("{share} is not above 0 and at most 1"));
        }
        let widest = tensor.shape.iter().rev().take(2).min().copied().unwrap_or(0);
        if !(1..=widest).contains(side) {
            return fault(".side", format!("{side} is not from 1 to {widest}, the smaller side of a record"));
        }
        let most = f64::from(CELL_MAX);
        if !(-most..=most).contains(value) {
            return fault(
                ".value",
                format!("{value} is no value of a pixel; give one from -{most:e} to {most:e}"),
            );
        }
        Ok(())
    }
}

impl AdversariesConfig {
    /// How many of `clients` are corrupted.
    pub(super) fn count_of(&self, clients: usize) -> usize {
        let of_share = |share: f64| (share * clients as f64).round() as usize;
        self.count.unwrap_or_else(|| self.share.map_or(0, of_share))
    }

    /// Whether it makes sense for a plan.
    pub(crate) fn check(&self, plan: &Plan) -> Result<(), SpecError> {
        if plan.method.is_some() {
            let message = "what is attacked is training, and this plan has a method instead; leave it out";
            return Err(SpecError::new("simulation.adversaries", message));
        }
        match (self.share, self.count) {
            (Some(_), Some(_)) => {
                Err(SpecError::new("simulation.adversaries.count", "give `count` or `share`, not both"))
            }
            (None, None) => Err(SpecError::new(
                "simulation.adversaries",
                "give `share` or `count`, how many clients are corrupted",
            )),
            (Some(share), _) if !(0.0..1.0).contains(&share) => Err(SpecError::new(
                "simulation.adversaries.share",
                format!(
                    "{share} is not from 0 to below 1; where all are corrupted there is nothing to defend"
                ),
            )),
            (..) => self.attack.check(&plan.spec),
        }
    }
}

impl Serialize for Attack {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Attack {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Typed)
    }
}

/// Typed as a word, which takes the defaults, or as a table of one, with settings.
struct Typed;

impl<'de> Visitor<'de> for Typed {
    type Value = Attack;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .write_str("an attack: a word such as \"alie\", or a table such as { sign_flip = { scale = 1 } }")
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<Attack, E> {
        let table = toml::Table::from_iter([(word.to_owned(), toml::Table::new().into())]);
        // The whole message of the other reader is its own first line.
        Attack::deserialize(table).map_err(|error| E::custom(error.to_string().trim_end()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Attack, A::Error> {
        let attack = Attack::deserialize(MapAccessDeserializer::new(&mut map))?;
        match map.next_key::<String>()? {
            Some(other) => Err(A::Error::custom(format!("a simulation has one attack; remove `{other}`"))),
            None => Ok(attack),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 12] = [
        "sign_flip",
        "gaussian",
        "zero",
        "label_flip",
        "random_labels",
        "alie",
        "inner_product",
        "min_max",
        "min_sum",
        "mimic",
        "backdoor",
        "norm",
    ];

    fn read(typed: &str) -> Result<Attack, String> {
        let config: Result<AdversariesConfig, _> =
            toml::from_str(&format!("share = 0.1\nattack = {typed}\n"));
        config.map(|config| config.attack).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn a_word_takes_the_defaults_of_its_table_and_is_written_so_that_it_can_be_read() {
        for name in NAMES {
            let attack = read(&format!("\"{name}\"")).unwrap();
            assert_eq!(attack.name(), name);
            assert_eq!(read(&format!("{{ {name} = {{}} }}")).unwrap(), attack);
            let config = AdversariesConfig { share: None, count: Some(1), attack };
            let text = toml::to_string(&config).unwrap();
            assert_eq!(toml::from_str::<AdversariesConfig>(&text).unwrap(), config, "{text}");
        }
        let typed = read("{ inner_product = { epsilon = 10 } }").unwrap();
        assert_eq!(typed, Attack::InnerProduct { epsilon: positive(10.0) });
        for (typed, named) in [
            ("\"sign_flp\"", "sign_flp"),
            ("{ alie = { y = 1 } }", "`y`"),
            ("{ sign_flip = { scale = -1 } }", "-1"),
            ("{ zero = {}, alie = {} }", "one attack"),
            ("3", "a word such as"),
        ] {
            let error = read(typed).unwrap_err();
            assert!(error.contains(named), "{typed}: {error}");
        }
    }
}
