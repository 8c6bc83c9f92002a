//! What can be typed after `rbee hive`.

use clap::{Args, Subcommand};
use input_validation::NodeName;

/// Shown after the help of `rbee hive`.
pub(crate) const EXAMPLES: &str = "\
Examples:
  rbee hive pair attic                                  a code for the machine attic, good once, for ten minutes
  rbee hive pair attic | ssh attic rbee-hive --pair --bind 10.0.0.7:9200
                                                        the same, and used at once
  rbee hive list                                        the machines
  rbee hive forget attic                                believe the machine no more

The queen needs a CA of her own for that: mode = \"local\" under [tls] in queen-rbee.toml.";

/// `rbee hive`.
#[derive(Debug, Args)]
pub(crate) struct HiveArgs {
    /// What to do with machines.
    #[command(subcommand)]
    pub(crate) action: HiveAction,
}

/// What to do with machines.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum HiveAction {
    /// Make a one-time code with which a machine becomes one of the cluster
    #[command(after_help = "With --json: {\"name\",\"code\",\"expires_in_seconds\"}")]
    Pair {
        /// What the machine will be called: letters a to z, digits and hyphens
        name: NodeName,
        /// By which URL the machine reaches the queen [default: the address that she listens on]
        #[arg(long, value_name = "URL")]
        url: Option<String>,
    },
    /// List the machines
    #[command(after_help = "With --json: what the queen answers to GET /api/v1/hives")]
    List,
    /// Believe a paired machine no more: its certificate and its token are refused from then on
    #[command(after_help = "With --json: {\"removed\":NAME}")]
    Forget {
        /// The machine
        name: NodeName,
    },
}
