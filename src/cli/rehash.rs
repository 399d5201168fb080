//! Hashes that are quick to guess at are made anew when their passwords come (`rehash: true`).

use std::sync::Arc;

use tokio::sync::mpsc::Receiver;
use tracing::{info, warn};

use super::running::State;
use super::{Failure, site};
use crate::auth::{Cost, PasswordHash};
use crate::config::Settings;
use crate::gate::WeakLogin;
use crate::pki::{Lock, Transaction};

/// Takes logins with weak hashes as they come.
pub(super) async fn keep_rehashed(state: Arc<State>, mut logins: Receiver<WeakLogin>) {
    while let Some(login) = logins.recv().await {
        let (settings, name) = (state.current.load_full(), login.identity.clone());
        let done = tokio::task::spawn_blocking(move || rehash(&settings, &login)).await;
        match done {
            Ok(Ok(true)) => {
                info!("the password of {name} has a hash of argon2id now");
                if let Err(error) = state.reload_directory().await {
                    warn!("it is not taken up yet: {error}");
                }
            }
            // Others came meanwhile, or it was set anew.
            Ok(Ok(false)) => {}
            Ok(Err(failure)) => {
                warn!(kind = "rehash", "the password of {name} keeps its weak hash: {}", failure.message);
            }
            Err(error) => warn!(kind = "rehash", "the password of {name} keeps its weak hash: {error}"),
        }
    }
}

/// Sets one line of the password file, if it still is what the login was checked by.
fn rehash(settings: &Settings, login: &WeakLogin) -> Result<bool, Failure> {
    let files = site::Files::of(settings);
    let _lock = Lock::acquire(&files.anchor)?;
    files.recover()?;
    let Some((Some(file), _)) = settings.realms().remove(&login.realm) else { return Ok(false) };
    let text = site::read_or_empty(file)?;
    let line = format!("{}:{}", login.identity, login.hash);
    if !text.lines().any(|known| known.trim() == line) {
        return Ok(false);
    }
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(Failure::new)?;
    let hash = PasswordHash::new(&login.secret, Cost::Human, salt);
    let mut change = Transaction::new(&files.anchor);
    change.write(file, site::edit_passwords(&text, &login.identity, Some(&hash)), 0o600, files.owner());
    change.commit()?;
    Ok(true)
}
