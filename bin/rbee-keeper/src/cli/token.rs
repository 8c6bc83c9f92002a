//! What can be typed after `rbee token`.

use clap::{Args, Subcommand, ValueEnum};

/// Shown after the help of `rbee token`.
pub(crate) const EXAMPLES: &str = "\
Examples:
  rbee token show-fingerprint   which tokens are in force, as the logs show them
  rbee token rotate             a new token for clients; the old one stays good for a while
  rbee token revoke             a new token for clients; the old one is refused at once
  rbee token rotate hive        a new token between queen and hive

The tokens are files in the home directory's secrets/. No command here prints a token.";

/// `rbee token`.
#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    /// What to do with them.
    #[command(subcommand)]
    pub(crate) action: TokenAction,
}

/// What to do with tokens.
#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum TokenAction {
    /// Replace a token; the old one stays good for as long as the programs are configured to take it
    #[command(
        after_help = "With --json: {\"token\":\"client\",\"fingerprint\":HEX,\"former\":HEX,\"told\":[{\"program\",\"pid\"},…]}"
    )]
    Rotate {
        /// Whose token
        #[arg(value_enum, default_value = "client")]
        which: WhichToken,
    },
    /// Replace a token; the old one, and one that was replaced before, are refused at once
    #[command(
        after_help = "With --json: {\"token\":\"client\",\"fingerprint\":HEX,\"former\":null,\"told\":[{\"program\",\"pid\"},…]}"
    )]
    Revoke {
        /// Whose token
        #[arg(value_enum, default_value = "client")]
        which: WhichToken,
    },
    /// Show which tokens are in force, by the first six digits of their SHA-256
    #[command(
        after_help = "With --json: {\"client\":{\"fingerprint\":HEX,\"former\":HEX},\"hive\":{…}}"
    )]
    ShowFingerprint,
}

/// Whose token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WhichToken {
    /// The one that clients show to the queen
    Client,
    /// The one that queen and hive show each other
    Hive,
}
