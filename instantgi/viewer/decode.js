// What decodes a file when it is asked to: in a worker, or in the page where there is none.

import { FormatError, bytesOf } from "./bytes.js";
import { gaussiansOf, readFile } from "./file.js";

// Answers at a port, of a worker or a channel. {data: bytes, or a text in base64} opens a file,
// {step} makes other Gaussians of it; the answer is {file, made: Gaussians of each part}, after some
// {share} that is done, or {error, isOurs}.
export function answer(port) {
  let file = null;
  port.onmessage = ({ data: { data, step } }) => {
    try {
      if (data !== undefined) file = readFile(typeof data === "string" ? bytesOf(data) : data);
      const made = gaussiansOf(file, step, (share) => port.postMessage({ share }));
      const buffers = made.flatMap(({ geometry, colors }) => [geometry.buffer, colors.buffer]);
      port.postMessage({ file: described(file), made }, buffers);
    } catch (error) {
      port.postMessage({ error: error.message, isOurs: error instanceof FormatError });
    }
  };
  port.postMessage({ isReady: true });
}

// Without the functions, which stay here.
function described(file) {
  return { ...file, parts: file.parts.map(({ decode, ...part }) => part) };
}
