//! Traces of runs and tasks for a collector of OpenTelemetry, in builds with the feature `otel`; other builds tell nobody.
//!
//! Whoever works says what happened, as it does for the log; nothing here is waited for, and nothing here can fail a run.

#[cfg(feature = "otel")]
mod collector;
#[cfg(feature = "otel")]
mod spans;

#[cfg(feature = "otel")]
pub(super) use collector::Telemetry;

/// Nobody is told.
#[cfg(not(feature = "otel"))]
#[derive(Debug)]
pub(super) struct Telemetry;

#[cfg(not(feature = "otel"))]
impl Telemetry {
    pub(super) fn from_environment(_role: &'static str) -> Self {
        if std::env::var_os("OTEL_EXPORTER_OTLP_ENDPOINT").is_some_and(|set| !set.is_empty()) {
            tracing::info!(
                "OTEL_EXPORTER_OTLP_ENDPOINT is set, but this build exports no traces; build it with `--features otel`"
            );
        }
        Self
    }

    pub(super) fn note(&self, _run: protocol::RunId, _note: &server::Note, _live: &server::net::LiveRuns) {}

    pub(super) fn event(&self, _event: &::client::net::AgentEvent) {}

    pub(super) fn flush(self) -> impl Future<Output = ()> {
        std::future::ready(())
    }
}
