//! The server's side of `consortia budget show`: the ledger of every population, computed anew from its events.

use privacy::accounting::Figure;
use privacy::chain::Link;
use privacy::counted;
use privacy::ledger::{Epsilons, Ledger, Record};
use serde_json::{Value, json};

use super::super::failure::{Failure, Kind, OrFail};
use super::super::folder::ServerFolder;
use super::super::global::Global;
use super::super::output::{table, text_table, without_empty};
use super::super::watch::runtime;

/// Under which a restored server charges the releases that its backup does not know.
const UNKNOWN_RUN: &str = "after-backup";

/// One population's budget.
struct Account {
    ledger: Ledger,
    epsilon: Epsilons,
    refused: usize,
}

/// Shows every population of the server in `folder`; the server may be running.
pub(super) fn show(folder: &ServerFolder, global: &Global) -> Result<(), Failure> {
    let accounts = runtime()?.block_on(read(folder))?;
    global.format.say(
        || lines(&accounts),
        || json!({ "kind": "server", "populations": accounts.iter().map(object).collect::<Vec<_>>() }),
    );
    Ok(())
}

async fn read(folder: &ServerFolder) -> Result<Vec<Account>, Failure> {
    let store = folder.look().await?;
    let mut accounts = Vec::new();
    for population in store.populations().await.or_fail(Kind::Run, "")? {
        let links = store.ledger(&population).await.or_fail(Kind::Run, "")?;
        accounts.push(account(&population, &links)?);
    }
    store.close().await;
    Ok(accounts)
}

fn account(population: &str, links: &[Link]) -> Result<Account, Failure> {
    let ledger = Ledger::replay(links).or_fail(Kind::Run, population)?;
    let epsilon = Epsilons::from(ledger.epsilon().or_fail(Kind::Run, population)?);
    let refused = |link: &&Link| matches!(link.read(), Ok(Record::Refused { .. }));
    Ok(Account { ledger, epsilon, refused: links.iter().filter(refused).count() })
}

fn lines(accounts: &[Account]) -> String {
    if accounts.is_empty() {
        return "this server keeps no privacy budget: no run of it has [privacy.central]\nwhat [privacy.examples] and [privacy.local] promise is accounted for \
                at each site: `consortia budget show SITE`"
            .to_owned();
    }
    let heads = ["population", "releases", "epsilon rdp", "epsilon pld", "budget", "delta", "refused"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(accounts.iter().map(|account| {
        let terms = account.ledger.terms();
        let epsilon = |epsilon: Option<f64>| {
            epsilon.map_or_else(|| "-".to_owned(), |epsilon| format!("{:.4}", Figure(epsilon)))
        };
        vec![
            terms.population.clone(),
            account.ledger.releases().to_string(),
            epsilon(account.epsilon.rdp),
            epsilon(account.epsilon.pld),
            Figure(terms.epsilon_max).to_string(),
            Figure(terms.delta).to_string(),
            account.refused.to_string(),
        ]
    }));
    let heads = accounts.iter().map(|account| {
        let secure = if account.ledger.is_secure() { "" } else { "  INSECURE: noise from a test's seed" };
        format!(
            "{}: {}, head {}{secure}",
            account.ledger.terms().population,
            counted(account.ledger.len(), "record"),
            account.ledger.head()
        )
    });
    let heads = heads.collect::<Vec<_>>().join("\n");
    format!("{}\n\n{}\n\n{heads}", table(&without_empty(rows)), text_table(&charges(accounts)))
}

/// What each run has charged, heads first.
fn charges(accounts: &[Account]) -> Vec<Vec<String>> {
    let mut rows = vec![["population", "charged by", "releases"].map(str::to_owned).to_vec()];
    for account in accounts {
        let population = &account.ledger.terms().population;
        rows.extend(account.ledger.run_charges().into_iter().map(|charge| {
            let run = match charge.run.as_str() {
                UNKNOWN_RUN => format!("{UNKNOWN_RUN} (lost since the backup, as it was told)"),
                run => format!("run {run}"),
            };
            vec![population.clone(), run, charge.releases.to_string()]
        }));
    }
    rows
}

fn object(account: &Account) -> Value {
    let terms = account.ledger.terms();
    json!({
        "population": terms.population,
        "unit": terms.unit,
        "relation": terms.relation,
        "releases": account.ledger.releases(),
        "runs": account.ledger.run_charges().iter().map(|charge| json!({ "run": charge.run, "releases": charge.releases })).collect::<Vec<_>>(),
        "rdp": account.epsilon.rdp,
        "pld": account.epsilon.pld,
        "epsilon_max": terms.epsilon_max,
        "delta": terms.delta,
        "refused": account.refused,
        "records": account.ledger.len(),
        "head": account.ledger.head(),
        "secure": account.ledger.is_secure(),
    })
}
