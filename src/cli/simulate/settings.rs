//! `--set KEY=VALUE`: a simulation file with settings changed on the command line.

use std::path::Path;

use simulations::ScenarioError;

use super::super::columns::completed;
use super::super::failure::{Failure, Kind, OrFail};
use super::super::plans::scenario_of;

/// A value typed as `key=value`.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    key: String,
    value: String,
}

impl Setting {
    /// Whether a message is about this setting: by its path, or by a last part that is unknown.
    fn is_named_in(&self, message: &str) -> bool {
        let path = message.split(": ").next().unwrap_or_default();
        let last = self.key.rsplit('.').next().unwrap_or_default();
        path == self.key
            || path.starts_with(&format!("{}.", self.key))
            || message.starts_with(&format!("unknown field `{last}`"))
    }
}

impl std::str::FromStr for Setting {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("give key=value, such as training.epochs=2")?;
        Ok(Self { key: key.trim().to_owned(), value: value.trim().to_owned() })
    }
}

/// The text with all the settings applied, of which some may need each other; an error names the setting that is at fault, and not a line that
/// nobody has typed.
pub(super) fn apply(text: &str, settings: &[Setting], file: &Path, base: &Path) -> Result<String, Failure> {
    let lookup = |name: &str| std::env::var(name).ok();
    let fault = |text: &str| match scenario_of(text, base, &lookup).err()? {
        ScenarioError::Config(error) => Some(error.message),
        other => Some(other.to_string()),
    };
    // A setting may say which columns, too.
    let with = |some: &[Setting]| completed(&with_settings(text, some)?, file, None);
    let changed = with(settings)?;
    let Some(message) = fault(&changed) else { return Ok(changed) };
    let culprits = match settings.iter().rfind(|setting| setting.is_named_in(&message)) {
        Some(named) => vec![named],
        None => {
            // Those without which it would not be said. Where each is as much at fault as the others, it is all of them.
            let mut needed = Vec::new();
            for place in 0..settings.len() {
                let others = [&settings[..place], &settings[place + 1..]].concat();
                // Without it the text may be none of a plan, which says nothing against this setting.
                let is_other = with(&others).is_ok_and(|text| fault(&text).as_ref() != Some(&message));
                needed.extend(is_other.then_some(&settings[place]));
            }
            if needed.is_empty() { settings.iter().collect() } else { needed }
        }
    };
    let told: Vec<String> =
        culprits.iter().map(|Setting { key, value }| format!("--set {key}={value}")).collect();
    Err(Failure::new(Kind::Configuration, format!("{}: {message}", told.join(" "))))
}

/// The text with the settings applied, whatever they mean.
fn with_settings(text: &str, settings: &[Setting]) -> Result<String, Failure> {
    let mut root: toml::Table = toml::from_str(text).or_fail(Kind::Configuration, "")?;
    for Setting { key, value } in settings {
        let typed = format!("value = {value}");
        let parsed = toml::from_str::<toml::Table>(&typed).ok().and_then(|mut table| table.remove("value"));
        let value = parsed.unwrap_or_else(|| toml::Value::String(value.clone()));
        let (parents, last) =
            key.rsplit_once('.').map_or((None, key.as_str()), |(parents, last)| (Some(parents), last));
        let mut table = &mut root;
        for part in parents.into_iter().flat_map(|parents| parents.split('.')) {
            let entry = table.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            let message =
                || Failure::new(Kind::Configuration, format!("--set {key}: `{part}` is not a table"));
            table = entry.as_table_mut().ok_or_else(message)?;
        }
        table.insert(last.to_owned(), value);
    }
    toml::to_string(&root).or_fail(Kind::Configuration, "--set")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(typed: &[&str]) -> Vec<Setting> {
        typed.iter().map(|one| one.parse().unwrap()).collect()
    }

    #[test]
    fn settings_are_typed_and_make_the_tables_they_need() {
        let typed = settings(&["rounds=3", "name=x", "training.optimizer.sgd.learning_rate=0.5"]);
        let text = with_settings("rounds = 1\nname = \"a\"\n", &typed).unwrap();
        let table: toml::Table = toml::from_str(&text).unwrap();
        assert_eq!(table["rounds"].as_integer(), Some(3));
        assert_eq!(table["name"].as_str(), Some("x"));
        assert_eq!(table["training"]["optimizer"]["sgd"]["learning_rate"].as_float(), Some(0.5));
        assert!(with_settings("rounds = 1\n", &settings(&["rounds.x=1"])).is_err());
    }

    #[test]
    fn an_error_names_the_setting_that_made_it() {
        const FILE: &str = "name = \"t\"\nrounds = 1\nmodel = \"logistic\"\n[data.tensor]\nshape = [4]\ntarget = { classes = 2 }\n\
            [training]\nbatch_size = 8\noptimizer = { sgd = { learning_rate = 0.1 } }\n\
            [simulation]\nclients = 3\ndataset = { synthetic = { rows = 30 } }\n";
        let said = |typed: &[&str]| {
            apply(FILE, &settings(typed), Path::new(""), Path::new(""))
                .map_err(|error| error.message().to_owned())
        };
        for (typed, named) in [
            (&["rounds=3", "training.epochs=many", "name=x"][..], "--set training.epochs=many: "),
            (&["rouns=3"], "--set rouns=3: "),
            (&["rounds=0"], "--set rounds=0: "),
            (&["simulation.clients=0", "rounds=2"], "--set simulation.clients=0: "),
            (&["training.optimizer.sgd.learning_rate=-1"], "--set training.optimizer.sgd.learning_rate=-1: "),
            (&["strategy=fedprox"], "--set strategy=fedprox: "),
        ] {
            let error = said(typed).unwrap_err();
            assert!(error.starts_with(named) && !error.contains("line "), "{error}");
        }
        assert!(said(&["cohort.clients_min=3", "cohort.quorum=3"]).is_ok());
        assert!(said(&["cohort.quorum=3", "cohort.clients_min=3"]).is_ok(), "together they make sense");
        assert!(said(&["strategy=fedadam"]).is_ok());
        // Two that need each other are judged together, also where a third one is wrong.
        let local =
            ["privacy.local.noise_multiplier=1", "privacy.local.delta=1e-5", "privacy.local.epsilon_max=9"];
        assert!(said(&local).is_ok(), "{:?}", said(&local));
        for wrong in ["privacy.local.epsilon_max=-9", "training.epochs=0", "rouns=2"] {
            for place in 0..=2 {
                let mut typed = local[..2].to_vec();
                typed.insert(place, wrong);
                if !wrong.starts_with("privacy") {
                    typed.push(local[2]);
                }
                let error = said(&typed).unwrap_err();
                assert!(error.starts_with(&format!("--set {wrong}: ")), "{error}");
            }
        }
    }
}
