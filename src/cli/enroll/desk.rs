//! The broker's side: who gets a certificate.

use std::sync::Arc;

use arc_swap::ArcSwap;
use time::OffsetDateTime;

use super::super::client::{Signing, has_generated_key};
use super::super::site::{self, Files};
use super::super::{Failure, bundle};
use super::read_tokens;
use crate::admin::{Certified, Denied, Desk};
use crate::config::Settings;
use crate::pki::{CertificateInfo, Lock, Request, Token, Tokens, Transaction};
use crate::types::Identity;

/// How long an enrolled device's certificate lives, days: it renews it itself.
const DAYS: u32 = 90;

/// Issues by the site's files.
pub(in crate::cli) struct SiteDesk {
    /// Swapped by a reload.
    pub(in crate::cli) settings: Arc<ArcSwap<Settings>>,
}

fn unavailable(error: impl std::fmt::Display) -> Denied {
    Denied::Unavailable(error.to_string())
}

impl From<Failure> for Denied {
    fn from(failure: Failure) -> Denied {
        Denied::Unavailable(failure.message)
    }
}

impl Desk for SiteDesk {
    fn cas(&self) -> Result<String, Denied> {
        bundle::ca_pem(&self.settings.load())?.ok_or_else(|| unavailable("there is no CA"))
    }

    fn enrol(&self, name: &str, token: &str, request: &[u8]) -> Result<Certified, Denied> {
        let token = Token::parse(token).map_err(|error| Denied::Credentials(error.to_string()))?;
        if token.name.as_str() != name {
            let why = format!("the token is for {}, not for the name that was given", token.name);
            return Err(Denied::Credentials(why));
        }
        let spend = |settings: &Settings| -> Result<Tokens, Denied> {
            let mut tokens = read_tokens(settings)?;
            let spent = tokens.spend(&token, OffsetDateTime::now_utc());
            spent.map_err(|error| Denied::Credentials(format!("{}: {error}", token.name)))?;
            Ok(tokens)
        };
        // A wrong one costs no lock.
        spend(&self.settings.load())?;
        self.issue(&token.name, request, |change, settings, files| {
            // Spent with the certificate, or not at all.
            change.write(&settings.tokens(), spend(settings)?.text(), 0o600, files.owner());
            Ok(Terms { days: DAYS, renews: None })
        })
    }

    fn reenrol(&self, current: &[u8], request: &[u8]) -> Result<Certified, Denied> {
        let info = CertificateInfo::parse(current).map_err(unavailable)?;
        let name = owner(&self.settings.load(), &info)?;
        self.issue(&name, request, |_, settings, _| {
            // It may have been revoked while this waited for the lock.
            owner(settings, &info)?;
            let life = (info.not_after - info.not_before).whole_days().clamp(1, i64::from(DAYS));
            Ok(Terms { days: life as u32, renews: Some(info.serial_text()) })
        })
    }
}

/// Whose a certificate is that is current now.
fn owner(settings: &Settings, info: &CertificateInfo) -> Result<Identity, Denied> {
    let cas = CertificateInfo::read_all(&settings.ca_certificate()).map_err(unavailable)?;
    let ledger = Files::of(settings).ledger()?;
    let owner = ledger.current().get(&info.serial).filter(|_| cas.iter().any(|ca| info.is_issued_by(ca))).cloned();
    let name = owner.ok_or_else(|| {
        Denied::Credentials(format!("the certificate {} is not current in the ledger", info.serial_text()))
    })?;
    if info.not_after <= OffsetDateTime::now_utc() {
        return Err(Denied::Credentials(format!("the certificate of {name} has expired: a token lets it in again")));
    }
    Ok(name)
}

/// What a certificate is issued with.
struct Terms {
    days: u32,
    /// The serial number of the one in whose place it comes.
    renews: Option<String>,
}

impl SiteDesk {
    /// `admit` says whether it may be, and how, under the site's lock.
    fn issue(
        &self,
        name: &Identity,
        request: &[u8],
        admit: impl FnOnce(&mut Transaction, &Settings, &Files) -> Result<Terms, Denied>,
    ) -> Result<Certified, Denied> {
        let settings = self.settings.load();
        if settings.enrolment.is_none() {
            return Err(unavailable("enrolment is switched off"));
        }
        let files = Files::of(&settings);
        let _lock = Lock::acquire(&files.anchor).map_err(unavailable)?;
        files.recover().map_err(unavailable)?;
        let mut change = Transaction::new(&files.anchor);
        let Terms { days, renews } = admit(&mut change, &settings, &files)?;
        let request = Request::parse(request, name).map_err(|error| Denied::Request(format!("{name}: {error}")))?;
        let authority = bundle::authority(&settings)?;
        let (owner, now) = (files.owner(), OffsetDateTime::now_utc());
        let keeps_bundle = !has_generated_key(&files, name);
        let signing =
            Signing { settings: &settings, files: &files, authority: &authority, owner, days, renews, keeps_bundle };
        let (certificate, _) = signing.sign(&mut change, name, &request, now)?;
        change.commit().map_err(unavailable)?;
        let port = site::ports(&settings).1;
        Ok(Certified { name: name.to_string(), certificate, ca: bundle::trusted_pem(&settings)?, port })
    }
}
