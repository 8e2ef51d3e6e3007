//! Keeps the lease of a server that shares its database with others, and stops the server when the lease is gone.
//!
//! It decides nothing about what may be written: the database does, in every transaction. It ensures that a server which was
//! deposed, or cannot reach its database, soon stops talking to sites, so that they look for the one that leads.

#![expect(clippy::disallowed_methods, reason = "how long ago the lease was renewed is this machine's time")]

use std::sync::Arc;
use std::time::Instant;

use protocol::wire::ConnectError;
use quinn::Endpoint;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Store, StoreError};
use crate::net::transport::messages::close_all;

/// The task that renews the lease; it ends with the reason why there is none any more.
#[derive(Debug)]
pub(crate) struct LeaseRenewer(JoinHandle<Option<StoreError>>);

impl LeaseRenewer {
    /// Renews every third of the lease's life until `stopped`; without the lease it cancels `stop` and closes the port. Nothing to
    /// do for a store without a lease.
    pub(crate) fn start(
        store: Arc<Store>,
        endpoint: Endpoint,
        stop: CancellationToken,
        stopped: CancellationToken,
    ) -> Self {
        Self(tokio::spawn(async move {
            let lost = stopped.run_until_cancelled(keep(&store)).await?;
            tracing::error!("{lost}");
            stop.cancel();
            close_all(&endpoint, &ConnectError::ShuttingDown);
            Some(lost)
        }))
    }

    /// Why there is no lease any more, if so. To be asked when the server has stopped.
    pub(crate) async fn lost(self) -> Option<StoreError> {
        self.0.await.ok().flatten()
    }
}

/// Returns when the lease is gone, which it never is where there is none to keep.
async fn keep(store: &Store) -> StoreError {
    let Some(life) = store.lease_life() else { return std::future::pending().await };
    let mut renewed = Instant::now();
    loop {
        sleep(life / 3).await;
        let began = Instant::now();
        match timeout(life / 3, store.renew()).await {
            Ok(Ok(())) => renewed = began,
            Ok(Err(deposed @ StoreError::Deposed { .. })) => return deposed,
            Ok(Err(error)) => tracing::warn!("the lease is not renewed: {error}"),
            Err(_) => tracing::warn!("the lease is not renewed: the database does not answer"),
        }
        if renewed.elapsed() >= life {
            return StoreError::LeaseLost { seconds: renewed.elapsed().as_secs() };
        }
    }
}
