//! What a fresh `policy.toml` says: one of the presets in force, or all of them as comments.

use ::client::{PLAIN_POLICY, PRIVATE_POLICY, RECORDS_POLICY};
use clap::ValueEnum;

/// What a fresh `policy.toml` begins with.
const POLICY_TOML: &str = "\
# What this site takes part in, whatever a server asks. A rule that is not written denies.
# Every rule is explained in docs/federation.md; `consortia site policy check policy.toml PLAN` says what it makes of a plan.
";

/// What a fresh policy allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Preset {
    /// Every task but methods, without privacy: the server sees each update.
    Plain,
    /// Training with noise that hides what each client contributes.
    Private,
    /// Training in which noise hides each single record, from the server too.
    Records,
}

impl Preset {
    const ALL: [Self; 3] = [Self::Plain, Self::Private, Self::Records];

    fn text(self) -> &'static str {
        match self {
            Self::Plain => PLAIN_POLICY,
            Self::Private => PRIVATE_POLICY,
            Self::Records => RECORDS_POLICY,
        }
    }

    pub(super) fn meaning(self) -> &'static str {
        match self {
            Self::Plain => "allows all of training, and asks for no privacy",
            Self::Private => "allows training whose noise hides what each client contributes",
            Self::Records => "allows training in which noise hides each single record",
        }
    }
}

/// The text of a fresh `policy.toml`: a preset in force, or all of them as comments.
pub(super) fn policy_text(preset: Option<Preset>) -> String {
    if let Some(preset) = preset {
        return format!("{POLICY_TOML}\n{}", preset.text());
    }
    let comment = |preset: Preset| -> String {
        // A preset's name stays a comment when the marks are taken out; its own comments have a mark more.
        let line = |line: &str| match line.starts_with("# Preset") {
            true => format!("{line}\n"),
            false => format!("# {line}").trim_end().to_owned() + "\n",
        };
        preset.text().lines().map(line).collect()
    };
    let presets = Preset::ALL.map(comment).join("\n");
    format!(
        "{POLICY_TOML}# As it stands, this file denies every task: take out the `# ` before the lines of one preset.\n\n{presets}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::client::Policy;

    #[test]
    fn a_fresh_policy_denies_everything_until_the_marks_before_a_preset_are_taken_out() {
        let fresh = policy_text(None);
        assert!(fresh.lines().all(|line| line.is_empty() || line.starts_with('#')));
        Policy::parse(&fresh).unwrap();
        let presets = fresh.split("# Preset").skip(1);
        for (written, preset) in presets.zip(Preset::ALL.map(Preset::text)) {
            let lines = written.lines().skip(1).map(|line| line.strip_prefix("# ").unwrap_or_default());
            let taken_out = lines.collect::<Vec<_>>().join("\n");
            assert_eq!(taken_out.trim_end(), preset.split_once('\n').unwrap().1.trim_end());
            Policy::parse(&taken_out).unwrap();
        }
        for preset in Preset::ALL {
            Policy::parse(&policy_text(Some(preset))).unwrap();
        }
    }
}
