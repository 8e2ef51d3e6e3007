//! How a strategy is typed: as a word, which takes the defaults, or as a table of one, with settings.

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{AdaptiveConfig, Strategy, momentum, one};

impl Serialize for Strategy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Strategy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Typed)
    }
}

struct Typed;

impl<'de> Visitor<'de> for Typed {
    type Value = Strategy;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(
            "a strategy: a word such as \"fedadam\", or a table such as { fedprox = { mu = 0.01 } }",
        )
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<Strategy, E> {
        match word {
            "fedprox" => Err(E::custom(
                "`fedprox` needs `mu`, the weight of its proximal term: { fedprox = { mu = 0.01 } }",
            )),
            "fedavgm" => Ok(Strategy::FedAvgM { learning_rate: one(), momentum: momentum() }),
            "fedadagrad" => Ok(Strategy::FedAdagrad(AdaptiveConfig::default())),
            "fedadam" => Ok(Strategy::FedAdam(AdaptiveConfig::default())),
            "fedyogi" => Ok(Strategy::FedYogi(AdaptiveConfig::default())),
            // The one that takes no settings, and words that are no strategy.
            _ => Strategy::deserialize(StrDeserializer::new(word)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strategy, A::Error> {
        let strategy = Strategy::deserialize(MapAccessDeserializer::new(&mut map))?;
        match map.next_key::<String>()? {
            Some(other) => Err(A::Error::custom(format!("a run has one strategy; remove `{other}`"))),
            None => Ok(strategy),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Serialize, Deserialize)]
    struct File {
        strategy: Strategy,
    }

    fn read(typed: &str) -> Result<Strategy, String> {
        let file: Result<File, _> = toml::from_str(&format!("strategy = {typed}\n"));
        file.map(|file| file.strategy).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn a_word_takes_the_defaults_of_its_table_and_is_written_so_that_it_can_be_read() {
        for (word, _) in Strategy::ROWS {
            if word == "fedprox" {
                let error = read("\"fedprox\"").unwrap_err();
                assert!(error.contains("needs `mu`"), "{error}");
                continue;
            }
            let strategy = read(&format!("\"{word}\"")).unwrap();
            if word != "fedavg" {
                assert_eq!(read(&format!("{{ {word} = {{}} }}")).unwrap(), strategy, "{word}");
            }
            let text = toml::to_string(&File { strategy }).unwrap();
            assert_eq!(toml::from_str::<File>(&text).unwrap().strategy, strategy, "{text}");
        }
        assert_eq!(read("{ fedprox = { mu = 0.5 } }").unwrap(), Strategy::FedProx { mu: 0.5 });
        for (typed, named) in [
            ("\"fedadm\"", "fedadm"),
            ("{ fedadam = { beta3 = 1 } }", "beta3"),
            ("{ fedprox = {} }", "mu"),
            ("{ fedadam = {}, fedyogi = {} }", "one strategy"),
            ("3", "a word such as"),
        ] {
            let error = read(typed).unwrap_err();
            assert!(error.contains(named), "{typed}: {error}");
        }
    }
}
