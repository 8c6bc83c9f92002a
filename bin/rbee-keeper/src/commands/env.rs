//! `rbee env`: what OpenAI's clients need, in the words of a shell. The one command that prints the token, because that
//! is what it is for.

use serde_json::json;

use crate::cli::EnvShell;
use crate::error::KeeperError;
use crate::keeper::Keeper;

pub(super) async fn env(keeper: &Keeper, shell: EnvShell) -> Result<(), KeeperError> {
    let queen = keeper.running_queen().await?;
    let url = format!("{}/v1", queen.url());
    let token = queen.token().expose();
    let certificate = keeper.certificate_file()?.map(|file| file.display().to_string());
    let output = &keeper.output;
    if output.is_json() {
        let mut told = json!({ "OPENAI_BASE_URL": url, "OPENAI_API_KEY": token });
        if let (Some(told), Some(file)) = (told.as_object_mut(), certificate) {
            told.insert("certificate_file".to_owned(), json!(file));
        }
        return output.json(&told);
    }
    if let Some(file) = certificate {
        // Exported, it would be the only one that all programs of this shell believe.
        output.note(&format!(
            "clients know this queen by {file}: `curl --cacert`, SSL_CERT_FILE for those in Python"
        ));
    }
    [("OPENAI_BASE_URL", url.as_str()), ("OPENAI_API_KEY", token)]
        .into_iter()
        .try_for_each(|(name, value)| output.raw(export(shell, name, value).as_bytes()))
}

fn export(shell: EnvShell, name: &str, value: &str) -> String {
    match shell {
        EnvShell::Sh => format!("export {name}='{}'\n", value.replace('\'', r"'\''")),
        EnvShell::Fish => {
            format!("set -gx {name} '{}'\n", value.replace('\\', r"\\").replace('\'', r"\'"))
        }
        EnvShell::Powershell => format!("$Env:{name} = '{}'\n", value.replace('\'', "''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_break_out_of_its_quotes() {
        for (shell, expected) in [
            (EnvShell::Sh, "export K='a'\\''b\\c'\n"),
            (EnvShell::Fish, "set -gx K 'a\\'b\\\\c'\n"),
            (EnvShell::Powershell, "$Env:K = 'a''b\\c'\n"),
        ] {
            assert_eq!(export(shell, "K", "a'b\\c"), expected);
        }
    }
}
