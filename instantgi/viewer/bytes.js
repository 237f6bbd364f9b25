// The bytes of a file: a signature, then chunks with a length, a type and a checksum.
//
// docs/format.md says what they mean. Bytes are hostile: every length is looked at before it is used.

const SIGNATURE = [0x89, 0x47, 0x49, 0x0d, 0x0a, 0x1a, 0x0a, 0x00];
const MOST_CHUNKS = 2 ** 20;

// A file that is damaged, or none of ours; the message goes on after the file's name.
export class FormatError extends Error {}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  let value = n;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

function crc32(bytes, begin, end) {
  let value = 0xffffffff;
  for (let i = begin; i < end; i++) value = CRC_TABLE[(value ^ bytes[i]) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

export const viewOf = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

// The bytes of a text in base64.
export function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// The whole chunks of a file, {type, payload}, without the one that ends it; whether that is there,
// or this is only the beginning of a file; and the file's length.
export function readChunks(bytes) {
  if (bytes.length < 8 || SIGNATURE.some((value, i) => bytes[i] !== value)) {
    throw new FormatError("is not a file of Gaussians: it begins otherwise");
  }
  const view = viewOf(bytes);
  const chunks = [];
  let at = SIGNATURE.length;
  while (chunks.length < MOST_CHUNKS && at + 12 <= bytes.length) {
    const length = view.getUint32(at, true);
    const end = at + 8 + length;
    if (end + 4 > bytes.length) break;
    const type = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (crc32(bytes, at + 4, end) !== view.getUint32(end, true)) {
      throw new FormatError(`is damaged: the checksum of its chunk '${type.trim()}' is wrong`);
    }
    if (type === "END " && length === 0) return { chunks, hasEnd: true, numBytes: end + 4 };
    chunks.push({ type, payload: bytes.subarray(at + 8, end) });
    at = end + 4;
  }
  return { chunks, hasEnd: false, numBytes: bytes.length };
}

// The short number that begins there (LEB128, at most five bytes), and where it ends.
export function shortNumber(payload, at) {
  let number = 0;
  for (let i = 0; i < 5 && at + i < payload.length; i++) {
    const byte = payload[at + i];
    number += (byte & 127) * 2 ** (7 * i);
    if (byte < 128) return [number, at + i + 1];
  }
  throw new FormatError("is damaged: a number has no end");
}
