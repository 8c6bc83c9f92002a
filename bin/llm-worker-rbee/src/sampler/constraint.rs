//! What can hold a reply to a form: a grammar. Knows no logits but those it is
//! shown and chooses nothing.

/// Says which token may come next.
pub(crate) trait Constraint: std::fmt::Debug + Send {
    /// Whether a token may come next.
    fn allows(&mut self, token: u32) -> bool;
    /// Sets the logits of all tokens that may not come next to minus infinity.
    fn mask(&mut self, logits: &mut [f32]);
    /// Goes on by a token, which was allowed.
    fn accept(&mut self, token: u32);
}
