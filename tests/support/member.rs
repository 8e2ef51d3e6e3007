//! An honest site in this process: the agent of a deployment around a learner of the test's.
//!
//! Every wait has an end and says what it waited for.

use std::path::Path;
use std::time::Duration;

use client::Participant;
use client::net::{Agent, AgentConfig, AgentError, AgentEvent, Identity};
use protocol::{ClientId, Learner};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a slow machine that does other things too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// An honest site at work. Dropping it ends it without a goodbye.
pub(crate) struct Member {
    leave: CancellationToken,
    work: Option<JoinHandle<Result<(), AgentError>>>,
}

impl Member {
    /// A site that the server at `address` has greeted; `folder` holds its certificate.
    pub(crate) async fn join(address: &str, folder: &Path, site: &str, learner: Box<dyn Learner>) -> Self {
        let (member, mut events) = Self::knock(address, folder, site, learner);
        let greeted = async {
            loop {
                match events.recv().await {
                    Some(AgentEvent::Connected { you, .. }) => return assert_eq!(you, site),
                    Some(_) => {}
                    None => panic!("{site}'s agent ended before it was greeted"),
                }
            }
        };
        timeout(PATIENCE, greeted).await.unwrap_or_else(|_| panic!("{site} was not greeted"));
        member
    }

    /// A site that tries to reach the server at `address`, whether or not it lives, and what happens to it. Several servers have
    /// commas between them.
    pub(crate) fn knock(
        address: &str,
        folder: &Path,
        site: &str,
        learner: Box<dyn Learner>,
    ) -> (Self, mpsc::Receiver<AgentEvent>) {
        let config = AgentConfig::any_of(address.split(',').map(str::to_owned).collect());
        Self::with(config, folder, site, learner)
    }

    /// The same, of a site that is told more.
    pub(crate) fn with(
        config: AgentConfig,
        folder: &Path,
        site: &str,
        learner: Box<dyn Learner>,
    ) -> (Self, mpsc::Receiver<AgentEvent>) {
        let identity = Identity::load(folder).unwrap();
        let participant = Participant::new(ClientId::new(site).unwrap(), learner);
        let (sender, events) = mpsc::channel(64);
        let agent = Agent::new(participant, identity, config).with_events(sender);
        let leave = CancellationToken::new();
        (Self { work: Some(tokio::spawn(agent.run(leave.clone()))), leave }, events)
    }

    /// Says goodbye; the agent must have been content to the end.
    pub(crate) async fn leave(mut self) {
        self.leave.cancel();
        let work = self.work.take().unwrap();
        timeout(PATIENCE, work).await.expect("an agent leaves when it is told to").unwrap().unwrap();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.leave.cancel();
        if let Some(work) = &self.work {
            work.abort();
        }
    }
}
