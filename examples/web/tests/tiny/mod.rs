//! A GGUF file of a model that is tiny and random, with a chat template: what the page opens in
//! tests. Also used by `cargo xtask web --test`, which puts it where browsers find it.

const HIDDEN: u64 = 128;
const WIDE: u64 = 192;
const HEAD_DIM: u64 = 64;
const LAYERS: u32 = 2;
/// Tokens: 256 bytes, two that are merged, two that mark messages.
const VOCABULARY: u64 = 260;
const ALIGNMENT: usize = 32;

/// Numbers that GGUF has for types of values and formats of tensors.
const U32: u32 = 4;
const F32: u32 = 6;
const BOOL: u32 = 7;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;
const PLAIN: u32 = 0;
const Q4_1: u32 = 3;
const Q8_0: u32 = 8;

/// Halves: 2^-6 and -7.5 * 2^-6 for codes of 4 bits, 2^-8 for bytes. Layers then say more than
/// embeddings, and a text does not repeat one token.
const NIBBLE_SCALE: [u8; 2] = 0x2400_u16.to_le_bytes();
const NIBBLE_LEAST: [u8; 2] = 0xaf80_u16.to_le_bytes();
const BYTE_SCALE: [u8; 2] = 0x1c00_u16.to_le_bytes();

const TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

struct Header {
    bytes: Vec<u8>,
    values: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    data: Vec<u8>,
    state: u32,
}

impl Header {
    fn text(bytes: &mut Vec<u8>, text: &str) {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    }

    fn value(&mut self, key: &str, kind: u32, value: &[u8]) {
        Self::text(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(value);
        self.values += 1;
    }

    fn number(&mut self, key: &str, number: u32) {
        self.value(key, U32, &number.to_le_bytes());
    }

    fn string(&mut self, key: &str, text: &str) {
        let mut value = Vec::new();
        Self::text(&mut value, text);
        self.value(key, TEXT, &value);
    }

    fn array(&mut self, key: &str, kind: u32, count: usize, values: &[u8]) {
        let mut value = kind.to_le_bytes().to_vec();
        value.extend((count as u64).to_le_bytes());
        value.extend(values);
        self.value(key, ARRAY, &value);
    }

    fn byte(&mut self) -> u8 {
        self.state = self.state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.state >> 24) as u8
    }

    /// Adds a tensor of random numbers, or of ones where it is plain.
    fn tensor(&mut self, name: &str, shape: &[u64], format: u32) {
        Self::text(&mut self.tensors, name);
        self.tensors.extend((shape.len() as u32).to_le_bytes());
        // Innermost first.
        shape.iter().rev().for_each(|size| self.tensors.extend(size.to_le_bytes()));
        self.tensors.extend(format.to_le_bytes());
        self.data.resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
        self.tensors.extend((self.data.len() as u64).to_le_bytes());
        self.tensor_count += 1;
        let numbers: u64 = shape.iter().product();
        if format == PLAIN {
            (0..numbers).for_each(|_| self.data.extend(1.0_f32.to_le_bytes()));
            return;
        }
        for _ in 0..numbers / 32 {
            let codes = if format == Q4_1 {
                self.data.extend([NIBBLE_SCALE, NIBBLE_LEAST].concat());
                16
            } else {
                self.data.extend(BYTE_SCALE);
                32
            };
            for _ in 0..codes {
                let byte = self.byte();
                self.data.push(byte);
            }
        }
    }
}

/// The letters that stand for bytes: those that can be printed for themselves, others from 256 on.
fn letters() -> Vec<String> {
    let printed = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut others = 256..;
    let mut letter = |byte: u32| if printed(byte) { byte } else { others.next().unwrap_or_default() };
    (0..256).map(|byte| char::from_u32(letter(byte)).unwrap_or_default().to_string()).collect()
}

/// Returns the file.
pub fn gguf() -> Vec<u8> {
    let mut header = Header { bytes: Vec::new(), values: 0, tensors: Vec::new(), tensor_count: 0, data: Vec::new(), state: 18 };
    header.string("general.architecture", "llama");
    for (key, number) in [
        ("context_length", 512),
        ("embedding_length", HIDDEN as u32),
        ("block_count", LAYERS),
        ("feed_forward_length", WIDE as u32),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
    ] {
        header.number(&format!("llama.{key}"), number);
    }
    header.value("llama.attention.layer_norm_rms_epsilon", F32, &1e-5_f32.to_le_bytes());

    let mut tokens = letters();
    tokens.extend(["th", "the", "<|im_start|>", "<|im_end|>"].map(str::to_owned));
    let mut texts = Vec::new();
    tokens.iter().for_each(|token| Header::text(&mut texts, token));
    header.string("tokenizer.ggml.model", "gpt2");
    header.string("tokenizer.ggml.pre", "gpt-2");
    header.array("tokenizer.ggml.tokens", TEXT, tokens.len(), &texts);
    let kinds: Vec<u8> = (0..VOCABULARY).flat_map(|token| if token < VOCABULARY - 2 { 1_u32 } else { 3 }.to_le_bytes()).collect();
    header.array("tokenizer.ggml.token_type", U32, VOCABULARY as usize, &kinds);
    let mut merges = Vec::new();
    ["t h", "th e"].iter().for_each(|merge| Header::text(&mut merges, merge));
    header.array("tokenizer.ggml.merges", TEXT, 2, &merges);
    header.number("tokenizer.ggml.eos_token_id", VOCABULARY as u32 - 1);
    header.value("tokenizer.ggml.add_bos_token", BOOL, &[0]);
    header.string("tokenizer.chat_template", TEMPLATE);

    header.tensor("token_embd.weight", &[VOCABULARY, HIDDEN], Q8_0);
    for layer in 0..LAYERS {
        let mut tensor = |name: &str, shape: &[u64], format| header.tensor(&format!("blk.{layer}.{name}.weight"), shape, format);
        tensor("attn_norm", &[HIDDEN], PLAIN);
        tensor("attn_q", &[2 * HEAD_DIM, HIDDEN], Q4_1);
        tensor("attn_k", &[HEAD_DIM, HIDDEN], Q4_1);
        tensor("attn_v", &[HEAD_DIM, HIDDEN], Q8_0);
        tensor("attn_output", &[HIDDEN, 2 * HEAD_DIM], Q4_1);
        tensor("ffn_norm", &[HIDDEN], PLAIN);
        tensor("ffn_gate", &[WIDE, HIDDEN], Q4_1);
        tensor("ffn_up", &[WIDE, HIDDEN], Q4_1);
        tensor("ffn_down", &[HIDDEN, WIDE], Q4_1);
    }
    header.tensor("output_norm.weight", &[HIDDEN], PLAIN);
    header.tensor("output.weight", &[VOCABULARY, HIDDEN], Q8_0);

    let mut file = b"GGUF".to_vec();
    file.extend(3_u32.to_le_bytes());
    file.extend(header.tensor_count.to_le_bytes());
    file.extend(header.values.to_le_bytes());
    file.extend(header.bytes);
    file.extend(header.tensors);
    file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
    file.extend(header.data);
    file
}
