//! Where an operator wants to see who joins: whoever shows an invite waits, and its invite is good for its key alone.
//!
//! What is compared by telephone is a phrase made from the public key, so that somebody who has the invite and another key cannot
//! say it. Nothing is certified while a request waits, and what was said about it is on disk before the site hears it.

use protocol::{ClientId, spoken};

use super::{Members, now};
use crate::net::store::Asking;
use crate::net::store::messages::{Record, Verdict};

/// Who lets somebody with an invite in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Approval {
    /// The invite does.
    #[default]
    ByInvite,
    /// An operator, once the invite was shown.
    ByOperator,
}

/// The words for a key, from its SHA-256 in hexadecimal digits.
pub(super) fn phrase(key_sha256: &str) -> String {
    spoken(key_sha256.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or_default())
}

impl Members {
    /// Approves or refuses who waits to become `site`; of several the one whose phrase this is. Without a phrase all are refused,
    /// and one is approved only if nobody else waits.
    pub(crate) async fn decide(
        &self,
        site: ClientId,
        verdict: Verdict,
        heard: Option<&str>,
        by: &str,
    ) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        let all = self.store.asking().await.map_err(|error| error.to_string())?;
        let now = now();
        let mut asking: Vec<Asking> =
            all.into_iter().filter(|one| one.site == site && one.expires >= now).collect();
        if asking.is_empty() {
            return Err(format!("nobody waits to become {site}; `consortia site ls` says who waits"));
        }
        if let Some(heard) = heard {
            let words = |text: &str| text.split_whitespace().map(str::to_lowercase).collect::<Vec<_>>();
            asking.retain(|one| words(&phrase(&one.key_sha256)) == words(heard));
            if asking.is_empty() {
                return Err(format!(
                    "whoever waits to become {site} has another phrase: if it was typed as the site said it, somebody else has its \
                     invite; `consortia site refuse {site}`"
                ));
            }
        }
        if verdict == Verdict::Approved && asking.len() > 1 {
            return Err(format!(
                "{} wait to become {site}, with different keys; give the phrase that the site says",
                asking.len()
            ));
        }
        for Asking { token_sha256, key_sha256, .. } in asking {
            let said = self.store.decide(&token_sha256, verdict, now).await;
            said.map_err(|error| error.to_string())?;
            tracing::info!("operator {by}: whoever waits to become {site} is {}", verdict.name());
            let (site, by) = (site.clone(), by.to_owned());
            self.record(Record::Decided { site, key_sha256, verdict, by }).await;
        }
        Ok(())
    }
}
