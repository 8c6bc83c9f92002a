//! What every command works with: the settings, the terminal, and the way to a queen.

use std::path::PathBuf;

use rbee_home::{Daemon, Home};
use rbee_tls::{Authority, Trust};
use secrets_management::{Secret, load_file};

use crate::config::Config;
use crate::error::KeeperError;
use crate::output::Output;
use crate::queen_client::QueenClient;
use crate::queen_process::{self, Running};

/// One run of the program.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) config: Config,
    pub(crate) output: Output,
    /// Whether a person may be asked and a chat may begin.
    pub(crate) may_ask: bool,
}

impl Keeper {
    /// Opens the home directory.
    ///
    /// # Errors
    /// [`KeeperError::Home`].
    pub(crate) fn home(&self) -> Result<Home, KeeperError> {
        Ok(self.config.open_home()?)
    }

    /// Returns the queen to ask, `None` where none runs. An address in the settings is taken as it is.
    ///
    /// # Errors
    /// What is wrong with the home or the token.
    pub(crate) async fn find_queen(&self) -> Result<Option<QueenClient>, KeeperError> {
        match &self.config.queen_url {
            Some(url) => self.remote(url).map(Some),
            None => queen_process::find(&self.home()?, self.own_token()?.as_ref()).await,
        }
    }

    /// Returns the queen to ask, for a command that starts none.
    ///
    /// # Errors
    /// [`KeeperError::NoQueen`], and as [`Self::find_queen`].
    pub(crate) async fn running_queen(&self) -> Result<QueenClient, KeeperError> {
        self.find_queen().await?.ok_or(KeeperError::NoQueen)
    }

    /// Returns the queen to ask, starting one where none runs.
    ///
    /// # Errors
    /// As [`Self::find_queen`], and why no queen could be started.
    pub(crate) async fn ensure_queen(&self) -> Result<QueenClient, KeeperError> {
        match &self.config.queen_url {
            Some(url) => self.remote(url),
            None => self.ensure_local_queen().await.map(|running| running.client),
        }
    }

    /// Returns the queen of this computer, starting one where none runs.
    ///
    /// # Errors
    /// What is wrong with the home or the token, and why no queen could be started.
    pub(crate) async fn ensure_local_queen(&self) -> Result<Running, KeeperError> {
        queen_process::ensure(&self.home()?, self.own_token()?.as_ref(), &self.output).await
    }

    fn remote(&self, url: &str) -> Result<QueenClient, KeeperError> {
        let token = match self.own_token()? {
            Some(token) => token,
            None => load_file(&self.home()?.client_token())?,
        };
        QueenClient::new(url, token, &self.trust(url)?)
    }

    /// Returns the file by which other programs know the queen; `None` where she speaks plain HTTP.
    ///
    /// # Errors
    /// What is wrong with the home.
    pub(crate) fn certificate_file(&self) -> Result<Option<PathBuf>, KeeperError> {
        match &self.config.queen_url {
            Some(url) if url.starts_with("http:") => Ok(None),
            Some(_) => self.ca_file().map(Some),
            None => {
                let run = self.home()?.read_run_file(Daemon::Queen)?;
                Ok(run.and_then(|run| run.certificate_file))
            }
        }
    }

    /// Returns the CAs that are configured, or the one in the home.
    fn ca_file(&self) -> Result<PathBuf, KeeperError> {
        match &self.config.ca_file {
            Some(file) => Ok(file.clone()),
            None => Ok(Authority::certificate_file(&self.home()?.tls_dir())),
        }
    }

    /// Returns whom a queen on another computer, or any server, is believed to be: who has a certificate of a CA that is
    /// known.
    ///
    /// # Errors
    /// [`KeeperError::Tls`], and [`KeeperError::NoCa`] where no CA is known.
    pub(crate) fn trust(&self, url: &str) -> Result<Trust, KeeperError> {
        if url.starts_with("http:") {
            return Ok(Trust::nobody());
        }
        let file = self.ca_file()?;
        let trust = Trust::in_files([&file]).map_err(KeeperError::Tls)?;
        if trust.is_empty() { Err(KeeperError::NoCa { path: file }) } else { Ok(trust) }
    }

    fn own_token(&self) -> Result<Option<Secret>, KeeperError> {
        Ok(self.config.token_file.as_deref().map(load_file).transpose()?)
    }
}
