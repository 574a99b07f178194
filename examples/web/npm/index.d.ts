// The types of WebGPU itself are those of the package `@webgpu/types`, where TypeScript’s own library has none.

/** The shape of the model's attention. What is left out has the default that is named. */
export interface AttentionShape {
  /** Layers of the model. Default 1. */
  layers?: number;
  /** Query heads of a layer: a multiple of `kvHeads`, 16 times at most. */
  queryHeads: number;
  /** KV heads of a layer. */
  kvHeads: number;
  /** Channels of a head: 64, 80, 96, 128, 192 or 256, or 512 on a device with `maxComputeInvocationsPerWorkgroup` and `maxComputeWorkgroupSizeX` of 512. */
  headDim: number;
  /**
   * Rotary position embedding, which the cache applies to keys and queries: they come before it. Default none: they are used as they come,
   * turned already where the model turns them.
   */
  rope?: {
    /** Base of the frequencies, such as 10000. Give this or `frequencies`. */
    theta?: number;
    /** Channels that turn, the first of each head. Default `headDim`. Only with `theta`. */
    dim?: number;
    /** Radians a position, one for each pair of channels that turns: for models that scale their frequencies. */
    frequencies?: ArrayLike<number>;
    /** Whether pairs are channels 2i and 2i+1, and not i and i + dim/2. Default false. */
    interleaved?: boolean;
  };
}

/** Where a cache or a calibration lives. */
export interface OnDevice {
  /**
   * The device that the cache shares with the caller's own work. Its limits and features decide which kernels run: with those of its adapter
   * (`requiredLimits`, 'shader-f16', 'subgroups') they are the fastest, and WebGPU's default limits will do. The cache leaves the device's
   * handlers alone and never destroys it.
   *
   * Default: a device with all that the adapter offers, which all caches without one of their own share.
   */
  device?: GPUDevice;
}

/** How much a cache holds and how: the shape of the attention and how keys and values are stored. */
export interface Options extends AttentionShape, OnDevice {
  /** Tokens that each sequence may hold at once. All memory is allocated by `Cache.open`; one sequence may be longer if others are shorter. */
  tokens: number;
  /** Sequences that may be held at once. Default 1. Prefixes that are kept (`Sequence.remember`) are such sequences, too. */
  sequences?: number;
  /** Tokens that a sequence may reach where it slides, and does not hold at once. Default: what `tokens` has room for. */
  maxTokens?: number;
  /** Tokens that every query sees, its own the last of them, as models with sliding-window attention want it. Default: all that are held. */
  slidingWindow?: number;
  /** Chunked attention, in the place of `slidingWindow`: every query sees the tokens since the last multiple of this (Llama 4). */
  chunkedAttention?: number;
  /** The factor on the product of key and query. Default 1 / sqrt(headDim). */
  scoreScale?: number;
  /** Caps scores softly: a score s becomes cap * tanh(s / cap) (Gemma 2). Default: they are not capped. */
  softCap?: number;
  /** A logit for every query head of every layer, `[layers, queryHeads]`, that takes part in the softmax and has no value (gpt-oss). */
  sinkLogits?: ArrayLike<number>;
  /** Whether keys and queries come turned by `rope` already, at consecutive positions. Default false. */
  turnedRows?: boolean;
  /** How keys and values are coded. 'centred' is better with a calibration, 'rotate-kv' needs one. Default 'hadamard'. */
  codec?: 'f16' | 'rtn' | 'hadamard' | 'centred' | 'rotate-kv' | 'aligned-f16';
  /** Bits of a key's code. Default 4. */
  keyBits?: 2 | 3 | 4 | 8 | 16;
  /** Bits of a value's code. Default 4. */
  valueBits?: 2 | 3 | 4 | 8 | 16;
  /**
   * What the codes of keys say. 'trellis' is for 'centred' with 2 bits: each code and the two before it together stand for a number, with a third less error at
   * the same bits. Default 'uniform'.
   */
  keyCode?: 'uniform' | 'trellis';
  /** The same of values. Default 'uniform'. */
  valueCode?: 'uniform' | 'trellis';
  /** Channels that share a scale. Default 64, or 128 with a trellis, which takes all of a head up to 128. */
  group?: 32 | 64 | 128;
  /** How scales and zeros are stored. Default 'f16'; 'centred' has a form of its own. */
  scales?: 'f16' | 'f8';
  /** Different bits for layers and heads: the JSON of a `BitPlan` that the Rust library saved. It takes the place of the seven above. */
  bitPlan?: string | object;
  /**
   * Tokens that stay in half precision for good: a number of first tokens, or 'massive:N', those of the N largest activations, which `elect`
   * finds. Default 4.
   */
  sinks?: number | `massive:${number}`;
  /** Latest tokens that stay in half precision, 128 or none at least. Default 128. */
  window?: number;
  /** What `Calibration.finish` or the Rust library saved, for 'rotate-kv' and 'centred'. */
  calibration?: Uint8Array;
  /** The numbers of the caller's rows for which kernels are compiled beforehand; others are compiled at their first use. Default 'f32'. */
  element?: 'f32' | 'f16';
  /** Query rows that are attended to at once; memory grows with it. Default 512. Less on slow adapters, whose drivers end long dispatches. */
  queryRows?: number;
  /** Workgroups that decoding is split into, at least, where there are tokens enough; memory grows with it. Default 4096. */
  splitWorkgroups?: number;
}

/**
 * Rows of numbers, dense: an array, a buffer from its start in f32, or a place in a buffer. A buffer is made on the cache's device with usage
 * `STORAGE` and is not mapped; it stays the caller's, and may be used for anything once the call has returned, as the queue keeps the order.
 */
export type Rows = Float32Array | GPUBuffer | PlacedRows;

/** Rows somewhere in a buffer. */
export interface PlacedRows {
  buffer: GPUBuffer;
  /** Bytes before the first row: a multiple of the device's `minStorageBufferOffsetAlignment` (256 at most). Default 0. */
  offset?: number;
  /** Default 'f32'. Keys and values have the same, and so have queries and output. 'f16' needs no feature of the device. */
  element?: 'f32' | 'f16';
}

/** New tokens of one sequence. */
export interface Chunk {
  sequence: Sequence;
  /** How many: 1 to decode, more for a prompt or a draft. */
  tokens: number;
}

/** What a step would take. */
export interface Admission {
  /** Pages of 128 tokens that the step would take. */
  pagesNeeded: number;
  /** Pages that no sequence holds. */
  pagesFree: number;
  /** Whether the step would find its pages. */
  fits: boolean;
}

/** A key or a value that was not stored as it came. */
export interface Flag {
  layer: number;
  /** The sequence's `slot`. */
  slot: number;
  /** Its position in the sequence. */
  token: number;
  /** The KV head. */
  head: number;
  /** 'not finite': read back as zeros, or as the mean with 'centred'. 'saturated': clamped to what the format stores. */
  key: 'not finite' | 'saturated' | null;
  value: 'not finite' | 'saturated' | null;
}

/** One text's tokens in a cache. Made by `Cache.begin`, `fork`, `Cache.load` and `Cache.beginText`; `end` gives its pages back. */
export class Sequence {
  private constructor();
  /** The cache that holds it. */
  readonly cache: Cache;
  /** Tokens appended, those that it slid beyond among them. */
  readonly tokens: number;
  /** Its place in the cache, below the option `sequences`, as `Flag` names it. */
  readonly slot: number;

  /**
   * Another sequence that holds what this one does, or its first `tokens` tokens. Whole pages are shared, and copied where one of them
   * changes; either grows without the other.
   */
  fork(tokens?: number): Sequence;
  /** Takes back all tokens but the first `tokens`, such as drafts that were rejected. */
  truncate(tokens: number): void;
  /**
   * Lets go of old tokens, so that an endless stream has room: all but the first ones (`sinks`) and the last `keep`, or up to 127 more. They
   * keep their positions. Returns the first token that is still held.
   */
  slide(keep: number): number;
  /** What is held, or its first `tokens` tokens, as the bytes of a safetensors file. */
  save(tokens?: number): Promise<Uint8Array>;
  /**
   * Keeps what is held of a text's first tokens, given by their ids, for `Cache.beginText`: whole pages of 128 tokens. Takes one of the cache's
   * sequences. Returns how many tokens are kept: 0 if there is no whole page, or no sequence left.
   */
  remember(text: ArrayLike<number>): number;
  /** Gives its pages back. */
  end(): void;
}

/**
 * Keys and values of one sequence or many, compressed on the GPU.
 *
 * Everything that is wrong throws an `Error`, or rejects with one where there is a promise. Its text names the thing, the number wanted and the
 * number had, and afterwards the cache holds what it held. What the calls below do is submitted to the device's queue before they return,
 * unless they are given an encoder: so it keeps its place among the caller's own work, and what they read may be written by work that was
 * submitted before.
 */
export class Cache {
  private constructor();

  /** Allocates a cache and compiles its kernels. Rejects if the device has not the memory or the limits. */
  static open(options: Options): Promise<Cache>;

  /**
   * The sequence to which `truncate`, `slide`, `saveTo`, `loadFrom`, `tokens`, `step(tokens)` and `append` without a step refer. It is begun
   * when it is first wanted, so that it takes no place beside those of `begin`.
   */
  readonly sequence: Sequence;

  /** Begins another sequence, of no tokens. */
  begin(): Sequence;
  /** Begins another sequence, of what was saved. Damaged bytes and those of another format or model are refused. */
  load(bytes: Uint8Array): Sequence;

  /**
   * Begins a step of the model: N tokens of the cache's first sequence, or chunks of several, whose rows then come one after another. The
   * tokens count from here on; every layer must be given their keys and values by `append` before the next step. Ending, forking,
   * cutting back or sliding any sequence before that ends the step, and the next `append` throws.
   *
   * With arrays `append` begins a step by itself, since they tell how many tokens they hold. Buffers do not.
   */
  step(tokens: number): void;
  step(chunks: Chunk[]): void;

  /**
   * Takes the step back of which no layer was appended yet. With `dropped` also one of which some were: the caller promises that the
   * encoders that they were recorded on are never submitted.
   */
  abandon(options?: { dropped?: boolean }): void;

  /** What a step of these tokens would take of the cache's pages. Changes nothing. */
  canAppend(tokens: number | Chunk[]): Admission;

  /**
   * With the sinks 'massive:N': elects a layer's sinks from the residual stream that enters it, `[tokens, width]`, before the layer's `append`
   * wherever a chunk has more than one token.
   */
  elect(layer: number, residual: Rows, width: number, encoder?: GPUCommandEncoder): void;

  /**
   * Gives a layer the step's keys and values: `[tokens, kvHeads, headDim]` each, keys before RoPE. Every layer must be given its own, in any
   * order, once a step. With an encoder it is recorded there, in a compute pass of its own, and nothing is submitted: the caller submits it
   * before calling anything here that changes or saves sequences. Rows are then buffers.
   */
  append(layer: number, keys: Rows, values: Rows, encoder?: GPUCommandEncoder): void;

  /**
   * Causal attention of the step's tokens over all that their sequences hold in a layer, themselves included: `[tokens, queryHeads, headDim]`,
   * as `queries`, which come before RoPE. After the layer's `append`, as often as wanted.
   *
   * With `output` it is written there; nothing is read back and nothing is to be awaited. Without, it is read back as an array.
   */
  attend(layer: number, queries: Rows, output: GPUBuffer | PlacedRows, encoder?: GPUCommandEncoder): void;
  attend(layer: number, queries: Float32Array | GPUBuffer | PlacedRows): Promise<Float32Array>;

  /**
   * Begins a sequence of a text, given by its tokens' ids, from the longest prefix of it that is kept. `tokens` of it are there; the rest is to
   * be appended, the last token in any case.
   */
  beginText(text: ArrayLike<number>): { sequence: Sequence; tokens: number };
  /** Gives prefixes that are kept back, the least recently used first, until a step of these tokens finds its pages, or none would help. */
  makeRoom(tokens: number | Chunk[]): Admission;
  /** Gives all prefixes back. */
  forgetTexts(): void;

  /** Takes back all tokens of `sequence` but the first `tokens`, such as an answer that is to be written anew. */
  truncate(tokens: number): void;
  /** `sequence.slide`. */
  slide(keep: number): number;
  /** `sequence.save`. */
  saveTo(): Promise<Uint8Array>;
  /** Fills `sequence`, which must hold nothing, with what a cache saved that was opened with the same options (but for `tokens`). */
  loadFrom(bytes: Uint8Array): void;

  /** Which keys and values were not stored as they came since the last call: how many, and the first 256 of them. Waits for the GPU. */
  status(): Promise<{ rows: number; flags: Flag[] }>;

  /** Tokens of `sequence`; 0 while it is not begun. */
  readonly tokens: number;
  /** Bytes that the tokens of all sequences need, scales and half precision rows included. */
  readonly bytes: number;
  /** Bytes allocated on the GPU for keys and values. */
  readonly bytesAllocated: number;
  /** Pages of 128 tokens that no sequence holds. */
  readonly pagesFree: number;
  /** All stored bits of `sequence` divided by the numbers they stand for. */
  readonly bitsPerElement: number;
  /**
   * Resolves with the reason when the GPU's device is lost. Every cache on it is lost, too, and its calls throw. `Cache.open` without a device
   * then makes another.
   */
  readonly lost: Promise<string>;
  /** What is stored how, with all sizes. */
  toString(): string;

  /** Gives the GPU's memory back at once. The cache cannot be used any more. */
  free(): void;
  [Symbol.dispose](): void;
}

/** What a calibration is for. */
export interface CalibrationOptions extends AttentionShape, OnDevice {
  /** 'centred' learns means and weights of channels, 'rotate-kv' an order of them. */
  codec: 'centred' | 'rotate-kv';
  /** KV heads that 'rotate-kv' rotates together. Default 4, or all if there are fewer. */
  headsPerGroup?: 1 | 2 | 4 | 8;
}

/**
 * What 'centred' and 'rotate-kv' learn: sample text goes through the unchanged model, every layer's rows go to `add`, and `finish` returns the
 * bytes that are a cache's option `calibration`.
 */
export class Calibration {
  private constructor();
  static open(options: CalibrationOptions): Promise<Calibration>;
  /** Adds one layer's rows of N tokens, queries and keys before RoPE. 'rotate-kv' looks at `keys` alone. No padding among them. */
  add(layer: number, rows: { queries?: Rows; keys: Rows; values?: Rows }, tokens: number, encoder?: GPUCommandEncoder): void;
  /** What was learned of all that was added, under the name of the model. */
  finish(model?: string): Promise<Uint8Array>;
  /** Gives memory back. The calibration cannot be used any more. */
  free(): void;
  [Symbol.dispose](): void;
}
