//! Invites, who waits with one, revocations and quarantines in the database.

use std::collections::{BTreeMap, BTreeSet};

use protocol::ClientId;
use protocol::wire::{Certificate, EnrolRejection, Member, Quarantine};
use sqlx::Row;
use sqlx::any::AnyRow;

use super::messages::Verdict;
use super::{Store, StoreError, rows};

/// What became of a token that was shown.
pub(crate) enum Shown {
    /// It is good, for this site.
    Good(ClientId),
    /// It was used with the same key before: the answer may have been lost.
    Again {
        chain_pem: String,
    },
    /// An operator has approved this key for this site.
    Approved(ClientId),
    /// An operator has said nothing yet of this key.
    Waiting,
    Refused(EnrolRejection),
}

/// Somebody who has shown an invite and of whom an operator has said nothing yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asking {
    pub(crate) site: ClientId,
    pub(crate) token_sha256: String,
    pub(crate) key_sha256: String,
    pub(crate) asked: u64,
    pub(crate) expires: u64,
    pub(crate) address: String,
}

/// A certificate that the issuing key has made. Times are seconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Issued {
    /// In hexadecimal digits.
    pub(crate) serial: String,
    pub(crate) issued: u64,
    pub(crate) expires: u64,
}

/// A certificate that would be good if it were not revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Void {
    pub(crate) serial: String,
    pub(crate) revoked: u64,
}

impl Store {
    /// Remembers a certificate before its site gets it.
    pub(crate) async fn add_certificate(&self, site: &ClientId, issued: &Issued) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("INSERT INTO certificates (serial, site, issued, expires) VALUES ($1, $2, $3, $4)")
            .bind(&issued.serial)
            .bind(site.as_str())
            .bind(issued.issued.cast_signed())
            .bind(issued.expires.cast_signed())
            .execute(&mut *transaction)
            .await?;
        Ok(transaction.commit().await?)
    }

    /// The certificates that are revoked and not over by themselves at `now`, by number.
    pub(crate) async fn void(&self, now: u64) -> Result<Vec<Void>, StoreError> {
        let sql = "SELECT c.serial, r.before FROM certificates c JOIN revocations r ON r.site = c.site
                   WHERE c.issued <= r.before AND c.expires >= $1 ORDER BY c.serial";
        let found = sqlx::query(sql).bind(now.cast_signed()).fetch_all(&self.pool).await?;
        let void = |row: &AnyRow| {
            let revoked = row.try_get::<i64, _>("before")?.cast_unsigned();
            Ok(Void { serial: row.try_get("serial")?, revoked })
        };
        found.iter().map(void).collect()
    }

    /// Remembers an invite. Older ones of the site that nobody has used are void from now on: two that are good would make two members
    /// of one name.
    pub(crate) async fn add_invite(
        &self,
        site: &ClientId,
        token_sha256: &str,
        created: u64,
        expires: u64,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("UPDATE invites SET withdrawn = 1 WHERE site = $1 AND used IS NULL")
            .bind(site.as_str())
            .execute(&mut *transaction)
            .await?;
        sqlx::query("INSERT INTO invites (token_sha256, site, created, expires) VALUES ($1, $2, $3, $4)")
            .bind(token_sha256)
            .bind(site.as_str())
            .bind(created.cast_signed())
            .bind(expires.cast_signed())
            .execute(&mut *transaction)
            .await?;
        Ok(transaction.commit().await?)
    }

    /// What a token is worth at `now`, shown with this key.
    pub(crate) async fn show(
        &self,
        token_sha256: &str,
        key_sha256: &str,
        now: u64,
    ) -> Result<Shown, StoreError> {
        let found = sqlx::query("SELECT * FROM invites WHERE token_sha256 = $1");
        let Some(row) = found.bind(token_sha256).fetch_optional(&self.pool).await? else {
            return Ok(Shown::Refused(EnrolRejection::Unknown));
        };
        let (withdrawn, expires): (i64, i64) = (row.try_get("withdrawn")?, row.try_get("expires")?);
        let (used, key): (Option<i64>, Option<String>) = (row.try_get("used")?, row.try_get("key_sha256")?);
        let verdict: Option<String> = row.try_get("verdict")?;
        let is_own = key.as_deref() == Some(key_sha256);
        Ok(if is_own && verdict.as_deref() == Some(Verdict::Refused.name()) {
            Shown::Refused(EnrolRejection::Denied)
        } else if withdrawn != 0 {
            Shown::Refused(EnrolRejection::Unknown)
        } else if now > expires.cast_unsigned() {
            Shown::Refused(EnrolRejection::Expired)
        } else if key.is_none() {
            site(&row)?.map_or(Shown::Refused(EnrolRejection::Unknown), Shown::Good)
        } else if !is_own {
            Shown::Refused(EnrolRejection::Used)
        } else if used.is_some() {
            Shown::Again { chain_pem: row.try_get("chain_pem")? }
        } else if verdict.as_deref() == Some(Verdict::Approved.name()) {
            site(&row)?.map_or(Shown::Refused(EnrolRejection::Unknown), Shown::Approved)
        } else {
            Shown::Waiting
        })
    }

    /// Keeps an invite for this key until an operator has said something of it. Whether it was there to be kept.
    pub(crate) async fn ask(
        &self,
        token_sha256: &str,
        key_sha256: &str,
        address: &str,
        now: u64,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let done = sqlx::query(
            "UPDATE invites SET asked = $1, key_sha256 = $2, address = $3
             WHERE token_sha256 = $4 AND key_sha256 IS NULL AND withdrawn = 0",
        )
        .bind(now.cast_signed())
        .bind(key_sha256)
        .bind(address)
        .bind(token_sha256)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(done.rows_affected() == 1)
    }

    /// Everybody of whom an operator has said nothing yet, in order of asking; those whose invite has ended are among them.
    pub(crate) async fn asking(&self) -> Result<Vec<Asking>, StoreError> {
        let sql = "SELECT * FROM invites WHERE asked IS NOT NULL AND used IS NULL AND verdict IS NULL AND withdrawn = 0
                   ORDER BY asked, token_sha256";
        let asking = |row: &AnyRow| {
            let (asked, expires): (i64, i64) = (row.try_get("asked")?, row.try_get("expires")?);
            let Some(site) = site(row)? else { return Ok(None) };
            Ok(Some(Asking {
                site,
                token_sha256: row.try_get("token_sha256")?,
                key_sha256: row.try_get("key_sha256")?,
                asked: asked.cast_unsigned(),
                expires: expires.cast_unsigned(),
                address: row.try_get("address")?,
            }))
        };
        sqlx::query(sql)
            .fetch_all(&self.pool)
            .await?
            .iter()
            .filter_map(|row| asking(row).transpose())
            .collect()
    }

    /// Writes down what an operator says of who waits with this invite; whoever is refused loses the invite.
    pub(crate) async fn decide(
        &self,
        token_sha256: &str,
        verdict: Verdict,
        now: u64,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("UPDATE invites SET verdict = $1 WHERE token_sha256 = $2")
            .bind(verdict.name())
            .bind(token_sha256)
            .execute(&mut *transaction)
            .await?;
        if verdict == Verdict::Refused {
            sqlx::query("UPDATE invites SET withdrawn = 1, expires = $1 WHERE token_sha256 = $2")
                .bind(now.saturating_sub(1).cast_signed())
                .bind(token_sha256)
                .execute(&mut *transaction)
                .await?;
        }
        Ok(transaction.commit().await?)
    }

    /// Uses an invite up. Whether it was there to be used.
    pub(crate) async fn use_invite(
        &self,
        token_sha256: &str,
        key_sha256: &str,
        chain_pem: &str,
        now: u64,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let done = sqlx::query(
            "UPDATE invites SET used = $1, key_sha256 = $2, chain_pem = $3
             WHERE token_sha256 = $4 AND used IS NULL AND withdrawn = 0 AND (key_sha256 IS NULL OR key_sha256 = $2)",
        )
        .bind(now.cast_signed())
        .bind(key_sha256)
        .bind(chain_pem)
        .bind(token_sha256)
        .execute(&mut *transaction)
        .await?;
        if done.rows_affected() == 1 {
            // Whom an operator invites anew may begin anew: its former folder is gone.
            let sql =
                "DELETE FROM site_ledgers WHERE site IN (SELECT site FROM invites WHERE token_sha256 = $1)";
            sqlx::query(sql).bind(token_sha256).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(done.rows_affected() == 1)
    }

    /// Voids a site's certificates up to `now`, and all of its invites.
    pub(crate) async fn revoke(&self, site: &ClientId, now: u64) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("INSERT INTO revocations (site, before) VALUES ($1, $2) ON CONFLICT (site) DO UPDATE SET before = $2")
            .bind(site.as_str())
            .bind(now.cast_signed())
            .execute(&mut *transaction)
            .await?;
        sqlx::query("UPDATE invites SET withdrawn = 1 WHERE site = $1")
            .bind(site.as_str())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Up to when each revoked site's certificates are void.
    pub(crate) async fn revocations(&self) -> Result<BTreeMap<ClientId, u64>, StoreError> {
        let found = sqlx::query("SELECT site, before FROM revocations").fetch_all(&self.pool).await?;
        let revocation = |row: &AnyRow| {
            let before = row.try_get::<i64, _>("before")?.cast_unsigned();
            Ok(site(row)?.map(|site| (site, before)))
        };
        found.iter().filter_map(|row| revocation(row).transpose()).collect()
    }

    /// Holds a site in quarantine from `since` on. Of one that is held already only the reason changes.
    pub(crate) async fn quarantine(
        &self,
        site: &ClientId,
        since: u64,
        reason: &str,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("INSERT INTO quarantines (site, since, reason) VALUES ($1, $2, $3) ON CONFLICT (site) DO UPDATE SET reason = $3")
            .bind(site.as_str())
            .bind(since.cast_signed())
            .bind(reason)
            .execute(&mut *transaction)
            .await?;
        Ok(transaction.commit().await?)
    }

    /// Ends a site's quarantine. Whether there was one.
    pub(crate) async fn end_quarantine(&self, site: &ClientId) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let done = sqlx::query("DELETE FROM quarantines WHERE site = $1")
            .bind(site.as_str())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(done.rows_affected() == 1)
    }

    /// Everybody who is held in quarantine.
    pub(crate) async fn quarantines(&self) -> Result<BTreeMap<ClientId, Quarantine>, StoreError> {
        let found = sqlx::query("SELECT site, since, reason FROM quarantines").fetch_all(&self.pool).await?;
        let quarantine = |row: &AnyRow| {
            let since = row.try_get::<i64, _>("since")?.cast_unsigned();
            let reason = row.try_get("reason")?;
            Ok(site(row)?.map(|site| (site, Quarantine { since, reason })))
        };
        found.iter().filter_map(|row| quarantine(row).transpose()).collect()
    }

    /// Names in the database that older releases allowed and that are no site's any more.
    pub(crate) async fn names_refused(&self) -> Result<BTreeSet<String>, StoreError> {
        let mut refused = BTreeSet::new();
        for sql in [
            "SELECT DISTINCT site AS name FROM invites",
            "SELECT DISTINCT site AS name FROM certificates",
            "SELECT DISTINCT site AS name FROM revocations",
            "SELECT DISTINCT site AS name FROM quarantines",
            "SELECT DISTINCT client AS name FROM clients",
        ] {
            for row in sqlx::query(sql).fetch_all(&self.pool).await? {
                let name: String = row.try_get("name")?;
                if rows::site_name(&name).is_ok_and(|site| site.is_none()) {
                    refused.insert(name);
                }
            }
        }
        Ok(refused)
    }

    /// Everybody who was ever invited or revoked or is held in quarantine, by name.
    pub(crate) async fn members(&self, now: u64) -> Result<Vec<Member>, StoreError> {
        let (revoked, mut held) = (self.revocations().await?, self.quarantines().await?);
        // Of two invites of one second the one that is good for longer counts as the newer one.
        let sql = "SELECT * FROM invites ORDER BY created, expires, token_sha256";
        let found = sqlx::query(sql).fetch_all(&self.pool).await?;
        let mut members = BTreeMap::new();
        for row in &found {
            let (created, expires): (i64, i64) = (row.try_get("created")?, row.try_get("expires")?);
            let used: Option<i64> = row.try_get("used")?;
            let Some(site) = site(row)? else { continue };
            let member: &mut Member = members.entry(site.clone()).or_insert_with(|| nobody(site));
            (member.invited, member.expires) = (created.cast_unsigned(), expires.cast_unsigned());
            member.joined = used.map(i64::cast_unsigned).or(member.joined);
        }
        let others: Vec<ClientId> = revoked.keys().chain(held.keys()).cloned().collect();
        for site in others {
            let member = members.entry(site.clone()).or_insert_with(|| nobody(site));
            member.revoked = revoked.get(&member.site).copied();
            if let Some(quarantine) = held.remove(&member.site) {
                member.quarantine = Some(quarantine);
            }
        }
        let sql = "SELECT * FROM certificates WHERE expires >= $1 ORDER BY issued, serial";
        for row in &sqlx::query(sql).bind(now.cast_signed()).fetch_all(&self.pool).await? {
            let (issued, expires): (i64, i64) = (row.try_get("issued")?, row.try_get("expires")?);
            let Some(site) = site(row)? else { continue };
            let (issued, expires) = (issued.cast_unsigned(), expires.cast_unsigned());
            if revoked.get(&site).is_none_or(|before| issued > *before) {
                let member = members.entry(site.clone()).or_insert_with(|| nobody(site));
                member.certificates.push(Certificate { serial: row.try_get("serial")?, issued, expires });
            }
        }
        Ok(members.into_values().collect())
    }
}

/// A name of which nothing is known yet.
pub(crate) fn nobody(site: ClientId) -> Member {
    Member {
        site,
        invited: 0,
        expires: 0,
        joined: None,
        revoked: None,
        quarantine: None,
        waiting: Vec::new(),
        certificates: Vec::new(),
        seen: None,
    }
}

/// The site of a row; none for a name that is no site's any more.
fn site(row: &AnyRow) -> Result<Option<ClientId>, StoreError> {
    let name: String = row.try_get("site")?;
    rows::site_name(&name).map_err(|error| StoreError::Member { name, message: error.to_string() })
}
