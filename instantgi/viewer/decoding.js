// A file that is decoded in a worker of its own, so that the page stays awake.

import { FormatError } from "./bytes.js";
import { answer } from "./decode.js";

export class Decoding {
  // `report` hears which share of an answer is done.
  constructor(report) {
    this.report = report;
    this.port = portOf();
    this.isIdle = Promise.resolve();
    this.isEnded = false;
    this.giveUp = () => {};
  }

  // The answer of `answer` to a question; null if the decoding is ended before, or when its turn
  // comes it is no longer wanted.
  ask(question, isWanted = () => true) {
    const answered = this.isIdle.then(() => (isWanted() ? this.exchange(question) : null));
    this.isIdle = answered.catch(() => {});
    return answered;
  }

  async exchange(question) {
    const port = await this.port;
    if (this.isEnded) return null;
    return new Promise((resolve, reject) => {
      this.giveUp = resolve;
      port.onerror = (event) => {
        event.preventDefault();
        this.isEnded = true; // it answers nothing more
        reject(new Error(event.message || "what decodes it has stopped"));
      };
      port.onmessage = ({ data }) => {
        if (data.share !== undefined) this.report(data.share);
        else if (data.error !== undefined) reject(new (data.isOurs ? FormatError : Error)(data.error));
        else if (data.made) resolve(data);
      };
      port.postMessage(question);
    });
  }

  async end() {
    this.isEnded = true;
    this.giveUp(null);
    const port = await this.port;
    if (port instanceof MessagePort) port.close();
    else port.terminate();
  }
}

// What answers: a worker of the page's own script, or where none can be made the page itself.
async function portOf() {
  const script = `${document.getElementById("decoder").textContent}\n$decode.answer(self);`;
  const place = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
  try {
    const worker = new Worker(place);
    await new Promise((resolve, reject) => {
      worker.onmessage = resolve; // it says that it is ready
      worker.onerror = reject;
    });
    return worker;
  } catch {
    const { port1, port2 } = new MessageChannel();
    answer(port2);
    return port1;
  } finally {
    URL.revokeObjectURL(place);
  }
}
