//! Corrupted clients of a simulation: who they are, and what they do instead of what the plan asks.
//!
//! Three kinds of attack. *Records* are changed before the simulation begins (label flip, random labels, backdoor). *One client alone*
//! changes its own update (sign flip, Gaussian, zero, too long a norm, the scaling of a backdoor). *Colluding* clients know every update
//! that honest clients of the round send, and all send one vector that is made of them (ALIE, inner-product manipulation, min-max,
//! min-sum, mimic). Statistics and evaluations are answered honestly by all.
//!
//! What is corrupted travels like what is honest: it is clipped, rounded to the lattice and checked by the server. Who is corrupted and
//! what they send follow from the seed, the round and the honest updates, these in the order of the clients' names: neither threads nor
//! the order of arrival change a bit.

mod collusion;
mod config;
mod forging;
mod poison;

use std::collections::BTreeSet;

use protocol::{ClientId, Purpose, Round, Seed, Task, Work};
use rand::seq::SliceRandom;

pub(crate) use collusion::Seen;
pub use config::{AdversariesConfig, Attack, Direction};
pub(crate) use forging::{in_units, lattice_of};
pub(crate) use poison::{Pattern, poison, relabelled};

/// The corrupted clients of a simulation.
#[derive(Clone, Debug)]
pub struct Adversaries {
    attack: Attack,
    seed: Seed,
    corrupted: BTreeSet<ClientId>,
}

/// Why nobody can be corrupted as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdversariesError {
    /// Nobody honest is left.
    #[error(
        "simulation.adversaries: {count} of {clients} clients would be corrupted; give a `count` or `share` that leaves an honest one"
    )]
    TooMany {
        /// What was typed, or a share of them rounded up.
        count: usize,
        /// Clients of the simulation.
        clients: usize,
    },
    /// A client that is not there is to be mimicked.
    #[error(
        "simulation.adversaries.attack.mimic.client: there is no client `{client}`; the first by name is `{first}`"
    )]
    NoSuchClient {
        /// What was typed.
        client: ClientId,
        /// One that is there.
        first: ClientId,
    },
}

/// What one client does with one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conduct {
    /// As it is asked.
    Honest,
    /// As it is asked, and the colluding clients see its update.
    Observed,
    /// It changes its own update.
    Alone,
    /// It sends what the colluding clients have agreed on.
    Colluding,
}

impl Adversaries {
    /// Draws who is corrupted among `clients`, in whatever order they come.
    ///
    /// # Errors
    /// [`AdversariesError`].
    pub fn draw<'a>(
        config: &AdversariesConfig,
        seed: Seed,
        clients: impl Iterator<Item = &'a ClientId>,
    ) -> Result<Self, AdversariesError> {
        let mut clients: Vec<&ClientId> = clients.collect();
        clients.sort_unstable();
        let count = config.count_of(clients.len());
        if count >= clients.len() && count > 0 {
            return Err(AdversariesError::TooMany { count, clients: clients.len() });
        }
        if let (Attack::Mimic { client: Some(client) }, [first, ..]) = (&config.attack, &clients[..]) {
            let Ok(place) = clients.binary_search(&client) else {
                return Err(AdversariesError::NoSuchClient {
                    client: client.clone(),
                    first: (*first).clone(),
                });
            };
            // Whoever is mimicked is honest.
            clients.remove(place);
        }
        let mut generator = seed.derive(Purpose::Adversary, Round(0), None).generator();
        let (drawn, _) = clients.partial_shuffle(&mut generator, count);
        let corrupted = drawn.iter().map(|client| (*client).clone()).collect();
        Ok(Self { attack: config.attack.clone(), seed, corrupted })
    }

    /// What they do.
    pub fn attack(&self) -> &Attack {
        &self.attack
    }

    /// Who they are.
    pub fn corrupted(&self) -> &BTreeSet<ClientId> {
        &self.corrupted
    }

    /// What `client` does with `task`.
    pub(crate) fn conduct(&self, client: &ClientId, task: &Task) -> Conduct {
        let is_attacked = matches!(task.work, Work::Train { .. }) && !self.corrupted.is_empty();
        match (is_attacked, self.corrupted.contains(client)) {
            (true, true) if self.attack.colludes() => Conduct::Colluding,
            (true, false) if self.attack.colludes() => Conduct::Observed,
            (true, true) => Conduct::Alone,
            _ => Conduct::Honest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(count: usize) -> Vec<ClientId> {
        (0..count).map(|i| ClientId::new(&format!("c{i:03}")).unwrap()).collect()
    }

    fn config(text: &str) -> AdversariesConfig {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn who_is_corrupted_follows_from_the_seed_and_not_from_the_order_of_clients() {
        let config = config("share = 0.2\nattack = \"zero\"\n");
        let clients = named(50);
        let draw = |seed, clients: &[ClientId]| {
            Adversaries::draw(&config, Seed::from_number(seed), clients.iter()).unwrap().corrupted
        };
        let one = draw(1, &clients);
        assert_eq!(one.len(), 10);
        let turned: Vec<ClientId> = clients.iter().rev().cloned().collect();
        assert_eq!(one, draw(1, &turned));
        assert_ne!(one, draw(2, &clients));
    }

    #[test]
    fn an_attack_that_leaves_nobody_honest_is_refused() {
        for (typed, count) in [("count = 3", 3), ("count = 2", 2), ("share = 0.95", 2)] {
            let config = config(&format!("{typed}\nattack = \"zero\"\n"));
            let drawn = Adversaries::draw(&config, Seed::from_number(1), named(2).iter());
            assert_eq!(drawn.unwrap_err(), AdversariesError::TooMany { count, clients: 2 }, "{typed}");
        }
    }

    #[test]
    fn whoever_is_mimicked_must_be_there() {
        let draw = |client: &str| {
            let config = config(&format!("count = 1\nattack = {{ mimic = {{ client = \"{client}\" }} }}\n"));
            Adversaries::draw(&config, Seed::from_number(1), named(2).iter())
        };
        for client in ["c000", "c001"] {
            let corrupted = draw(client).unwrap().corrupted;
            assert!(corrupted.iter().all(|corrupted| corrupted.as_str() != client), "{client} is honest");
            assert_eq!(corrupted.len(), 1);
        }
        let error = draw("c002").unwrap_err().to_string();
        assert!(error.contains("no client `c002`; the first by name is `c000`"), "{error}");
    }
}
