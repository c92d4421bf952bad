//! The stand-in's vocabulary, and the rule by which one token follows another.
//!
//! The next token depends on the tokens before it and on nothing else. A prompt made of an earlier prompt and the tokens
//! already emitted therefore continues exactly as the uninterrupted run would have.

pub(crate) type Token = u32;

/// Control tokens, as in the tiny Llama: they decode to nothing.
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// Ends a message.
pub(crate) const END: Token = 2;
const FIRST_BYTE: Token = SPECIAL.len() as Token;
const FIRST_WORD: Token = FIRST_BYTE + 256;

const WORDS: [&str; 64] = [
    " a",
    " after",
    " again",
    " and",
    " answer",
    " before",
    " boat",
    " bridge",
    " calm",
    " clear",
    " cloud",
    " counts",
    " day",
    " deep",
    " door",
    " early",
    " evening",
    " far",
    " field",
    " finds",
    " fire",
    " first",
    " garden",
    " green",
    " harbour",
    " hears",
    " hill",
    " home",
    " in",
    " is",
    " keeps",
    " lamp",
    " late",
    " light",
    " long",
    " morning",
    " mountain",
    " near",
    " night",
    " of",
    " old",
    " on",
    " opens",
    " quiet",
    " rain",
    " river",
    " road",
    " sails",
    " sea",
    " second",
    " ship",
    " small",
    " stands",
    " star",
    " stone",
    " the",
    " then",
    " tower",
    " turns",
    " under",
    " waits",
    " water",
    " wind",
    " with",
];

/// Characters of two bytes with the same first byte, one token a byte: a stream can be cut inside one, as real ones are.
const LEAD_BYTE: u8 = 0xC3;
const TRAIL_BYTES: [u8; 4] = [0xA9, 0x9F, 0xB1, 0xBC];

/// One token in so many starts such a character.
const CHARACTER_ONE_IN: u64 = 16;
/// One token in so many ends the message by itself, as a model would.
const END_ONE_IN: u64 = 1024;

pub(crate) fn vocabulary_size() -> Token {
    FIRST_WORD + WORDS.len() as Token
}

/// Longest match first; whatever is no control token and no word is taken byte by byte.
pub(crate) fn encode(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text.as_bytes();
    while let Some(first) = rest.first() {
        let (token, length) = longest(&SPECIAL, rest)
            .or_else(|| longest(&WORDS, rest).map(|(i, length)| (i + FIRST_WORD, length)))
            .unwrap_or((FIRST_BYTE + Token::from(*first), 1));
        tokens.push(token);
        rest = &rest[length..];
    }
    tokens
}

/// The prompt of a chat, in the template of the tiny Llama.
pub(crate) fn encode_chat<'a>(
    messages: impl Iterator<Item = (&'a str, String)>,
    opens_reply: bool,
) -> Vec<Token> {
    let mut text: String =
        messages.map(|(role, content)| format!("<|im_start|>{role}\n{content}<|im_end|>\n")).collect();
    if opens_reply {
        text.push_str("<|im_start|>assistant\n");
    }
    encode(&text)
}

pub(crate) fn decode(tokens: &[Token]) -> String {
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| bytes_of(*token)).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Turns tokens into text one by one; a character whose bytes have not all come waits.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    waiting: Vec<u8>,
}

impl Decoder {
    pub(crate) fn push(&mut self, token: Token) -> String {
        self.waiting.extend(bytes_of(token));
        let whole = match std::str::from_utf8(&self.waiting) {
            Ok(text) => text.len(),
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => self.waiting.len(),
        };
        let rest = self.waiting.split_off(whole);
        let text = String::from_utf8_lossy(&self.waiting).into_owned();
        self.waiting = rest;
        text
    }
}

/// Everything the next token depends on.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    state: u64,
    last: Option<Token>,
}

impl Context {
    /// `choice` tells the answers to one prompt apart (`n` > 1); 0 is the one that can be continued.
    pub(crate) fn new(prompt: &[Token], choice: u32) -> Self {
        let mut context = Self { state: u64::from(choice), last: None };
        prompt.iter().for_each(|token| context.push(*token));
        context
    }

    pub(crate) fn push(&mut self, token: Token) {
        self.state = mix(self.state ^ u64::from(token));
        self.last = Some(token);
    }

    pub(crate) fn next(&self) -> Token {
        let dice = mix(self.state);
        if self.last == Some(byte_token(LEAD_BYTE)) {
            return byte_token(TRAIL_BYTES[(dice % TRAIL_BYTES.len() as u64) as usize]);
        }
        match dice {
            _ if dice % END_ONE_IN == 1 => END,
            _ if dice.is_multiple_of(CHARACTER_ONE_IN) => byte_token(LEAD_BYTE),
            _ => self.next_word(),
        }
    }

    /// What comes instead of the end where the request wants to go on.
    pub(crate) fn next_word(&self) -> Token {
        FIRST_WORD + (mix(self.state.rotate_left(17)) % WORDS.len() as u64) as Token
    }
}

fn byte_token(byte: u8) -> Token {
    FIRST_BYTE + Token::from(byte)
}

fn bytes_of(token: Token) -> Vec<u8> {
    match token {
        ..FIRST_BYTE => Vec::new(),
        FIRST_BYTE..FIRST_WORD => vec![(token - FIRST_BYTE) as u8],
        FIRST_WORD.. => {
            WORDS.get((token - FIRST_WORD) as usize).map_or_else(Vec::new, |word| word.as_bytes().to_vec())
        }
    }
}

fn longest(table: &[&str], text: &[u8]) -> Option<(Token, usize)> {
    let fitting = table.iter().enumerate().filter(|(_, entry)| text.starts_with(entry.as_bytes()));
    fitting.max_by_key(|(_, entry)| entry.len()).map(|(index, entry)| (index as Token, entry.len()))
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit of the input reaches every bit of the output.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(prompt: &[Token], count: usize) -> Vec<Token> {
        let mut context = Context::new(prompt, 0);
        (0..count)
            .map(|_| {
                let token = context.next();
                context.push(token);
                token
            })
            .collect()
    }

    #[test]
    fn a_run_continued_from_any_cut_equals_the_uninterrupted_run() {
        let prompt = encode("Tell me about ships");
        let whole = run(&prompt, 200);
        for cut in 0..whole.len() {
            let so_far = [prompt.as_slice(), &whole[..cut]].concat();
            assert_eq!(run(&so_far, whole.len() - cut), whole[cut..], "cut at {cut}");
        }
    }

    #[test]
    fn another_prompt_gives_other_tokens() {
        assert_ne!(run(&encode("one"), 8), run(&encode("two"), 8));
    }

    #[test]
    fn text_survives_encoding_and_decoding() {
        for text in ["", "Hello the world", " then the sea", "naïve 😀 <b>", "{\"a\": [1]}"] {
            assert_eq!(decode(&encode(text)), text);
        }
    }

    #[test]
    fn generated_text_encodes_to_the_tokens_it_came_from() {
        let tokens: Vec<Token> = run(&encode("x"), 400).into_iter().filter(|token| *token != END).collect();
        assert_eq!(encode(&decode(&tokens[..300])), tokens[..300]);
    }

    #[test]
    fn a_split_character_waits_for_its_last_byte() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.push(byte_token(0xC3)), "");
        assert_eq!(decoder.push(byte_token(0xA9)), "é");
    }

    #[test]
    fn control_tokens_are_one_token_and_no_text() {
        let tokens = encode("<|im_start|>user\n");
        assert_eq!(tokens[0], 1);
        assert_eq!(decode(&tokens), "user\n");
    }
}
