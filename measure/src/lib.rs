//! Measuring the program against the machine it runs on: what the command `consortia bench` and the benches share. It is a package of its
//! own so that it is optimised, which the command is not where it is built from source.
//!
//! Every figure has its limit measured beside it in the same run. Nothing is judged here: callers do.
#![expect(clippy::disallowed_methods, reason = "who measures reads the clock")]

pub mod crowd;
pub mod learner;
mod role;
mod vector;
pub mod wire;

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use protocol::ClientId;
use server::net::Authority;

pub use role::Program;
pub use vector::Adder;

/// Plays the role that a [`Program`] was started in, until its standard input ends. `None` when it was started in none.
///
/// # Errors
/// Whatever hinders the role.
pub async fn role() -> Option<anyhow::Result<()>> {
    let words = std::env::var(role::VARIABLE).ok()?;
    Some(play(&words.split('|').collect::<Vec<_>>()).await)
}

async fn play(words: &[&str]) -> anyhow::Result<()> {
    match *words {
        ["federation", dir, parameters, sites, rounds] => {
            let (parameters, sites, rounds) = (parameters.parse()?, sites.parse()?, rounds.parse()?);
            wire::serve(Path::new(dir), wire::Order { parameters, sites, rounds }).await
        }
        ["bare", dir, bytes, datagram_max] => {
            wire::serve_bare(Path::new(dir), bytes.parse()?, datagram_max.parse()?).await
        }
        ["crowd", dir, parameters, sites, rounds] => {
            let (parameters, sites, rounds) = (parameters.parse()?, sites.parse()?, rounds.parse()?);
            let transport = client::net::Transport::default();
            let order = crowd::Order { parameters, sites, rounds, transport };
            crowd::serve(Path::new(dir), order).await
        }
        _ => bail!("there is no role `{}`", words.join(" ")),
    }
}

/// The server's folder `identity`, and one named after each site.
fn issue_identities(dir: &Path, count: usize) -> anyhow::Result<()> {
    let authority = Authority::create(&dir.join("authority"), SystemTime::now())?;
    authority.issue_server(&[], SystemTime::now())?.write_identity(&dir.join("identity"))?;
    for site in sites(count)? {
        authority.issue_site(&site, SystemTime::now())?.write_identity(&dir.join(site.as_str()))?;
    }
    Ok(())
}

/// Names for so many sites.
fn sites(count: usize) -> anyhow::Result<Vec<ClientId>> {
    (1..=count).map(|index| ClientId::new(&format!("site-{index}")).context("a name for a site")).collect()
}

/// Seconds since the Unix epoch: the clock that two processes share.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Processes that want a processor, over the last minute; not a number where the system does not say.
fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}

/// The middle value.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_or_between_the_middles() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert!(median(std::iter::empty()).is_nan());
    }
}
