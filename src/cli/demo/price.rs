//! What the demo cost in privacy: every hospital's own ledger says.

use ::client::SiteAccount;
use privacy::accounting::Figure;
use privacy::ledger::Unit;
use serde_json::{Value, json};

use crate::cli::failure::{Failure, Kind, OrFail};
use crate::cli::folder::ServerFolder;

/// The delta at which it is told; the plan of the private demo has the same.
const DELTA: f64 = 1e-5;

/// Epsilon of the records of one hospital, by its own ledger; none where nothing protected them.
pub(super) struct Price {
    hospital: String,
    epsilon: Option<f64>,
}

/// Reads the ledgers of these hospitals, whose programs have ended.
pub(super) fn prices(folder: &ServerFolder, hospitals: &[(String, String)]) -> Result<Vec<Price>, Failure> {
    let price = |(name, _): &(String, String)| {
        let path = folder.site(name).join("ledger.jsonl");
        let text = std::fs::read(&path).or_fail(Kind::Run, path.display())?;
        let account = SiteAccount::read(&text).or_fail(Kind::Run, path.display())?;
        let total = account.total(Unit::Example, None, DELTA).or_fail(Kind::Run, path.display())?;
        // A hospital that has trained nothing has given nothing away.
        let is_bounded = total.protected > 0 || total.unprotected == 0;
        let epsilon = is_bounded.then(|| total.epsilon.best());
        Ok(Price { hospital: name.clone(), epsilon })
    };
    hospitals.iter().map(price).collect()
}

/// One line for all of them.
pub(super) fn describe(prices: &[Price]) -> String {
    let worst = prices
        .iter()
        .map(|price| price.epsilon)
        .max_by(|a, b| a.unwrap_or(f64::INFINITY).total_cmp(&b.unwrap_or(f64::INFINITY)));
    match worst.flatten() {
        Some(epsilon) => {
            format!(
                "{:.4} at delta {DELTA:e} for every patient's record, by each hospital's own ledger",
                Figure(epsilon)
            )
        }
        None => "infinite: this plan adds no noise (`demo --private` does)".to_owned(),
    }
}

/// By hospital.
pub(super) fn object(prices: &[Price]) -> Value {
    prices.iter().map(|price| (price.hospital.clone(), json!(price.epsilon))).collect()
}
