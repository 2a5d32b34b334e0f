"""A whole client of a Dragoman node in plain pyzmq and msgpack: order, back-pressure, ping and resume.

    python plain_client.py ENDPOINT PIPELINE SOURCE TARGET UTTERANCE...     (a .wav of 16 kHz, 16 bit, mono; or a text)

It is written to be read beside docs/protocol.md and copied into any program or language.
"""

import sys
import time
import wave

import msgpack
import zmq


def translate(endpoint, utterances, pipeline="full", source="", target="", patience_s=10.0):
    """Yield (outcome, samples or None) for each utterance (bytes: s16le samples, str: a text), in order."""
    socket = zmq.Context.instance().socket(zmq.DEALER)  # sets no routing id
    socket.connect(endpoint)
    opening = {"type": "Open", "tag": "plain", "pipeline": pipeline, "source": source, "target": target}

    def say(*messages, samples=None):
        socket.send_multipart([msgpack.packb(messages)] + ([] if samples is None else [samples]))

    def submit(index):
        message, utterance = {"type": "Submit", "session": session, "index": index}, utterances[index]
        if isinstance(utterance, str):
            say({**message, "text": utterance})
        else:
            say({**message, "dtype": "s16le", "nbytes": len(utterance), "sample_rate": 16000}, samples=utterance)

    session = token = incarnation = None
    received, coming, share, hold_until = -1, 0, 1, 0.0  # last outcome in hand, next index to send
    pinged = heard = asked = time.monotonic()
    question = opening  # Open or Resume, until Opened answers it
    say({"type": "Hello", "version": 1, "client": "plain"}, question)
    while received < len(utterances) - 1:
        now = time.monotonic()
        if now - heard > patience_s:
            raise TimeoutError(f"no answer from {endpoint}")
        if now - pinged >= 0.5:  # a restarted node knows nobody until spoken to; naming the session shows what it knows
            pinged = now
            say({"type": "Ping"}, *([{"type": "Ack", "session": session, "through": received}] if session else []))
        if session is None and now - asked >= 1.0:  # it died with a connection
            asked = now
            say({"type": "Hello", "version": 1, "client": "plain"}, question)
        while session and now >= hold_until and coming < len(utterances) and coming - received - 1 < share:
            submit(coming)
            coming += 1
        if not socket.poll(100):
            continue
        head, *samples = socket.recv_multipart()
        heard = time.monotonic()
        for message in msgpack.unpackb(head):
            kind = message["type"]
            if kind == "Opened" and session is None:  # else asked for twice, and answered twice
                session, token, share = message["session"], message["token"], message["share"]
                coming = max(received + 1, message["next_index"])  # below it, everything was accepted
            elif kind == "Outcome" and message["index"] > received:  # else: sent again after a resume
                received = message["index"]
                say({"type": "Ack", "session": session, "through": received})
                yield message, samples[0] if message.get("nbytes") else None
            elif kind == "Busy":
                coming = min(coming, message["resend_from"])
                hold_until = time.monotonic() + message["retry_after_ms"] / 1000
            elif kind == "Share":
                share = message["n"]
            elif kind == "Rejected" and message.get("index") is not None:
                print(f"{message['index']}: {message['code']}: {message['text']}", file=sys.stderr)
                say({"type": "Skip", "session": session, "index": message["index"]})  # else it would be a gap
            elif kind in ("Rejected", "Closed"):
                raise RuntimeError(f"{kind}: {message.get('code', message.get('reason'))} {message.get('text', '')}")
            elif (kind == "Pong" and incarnation not in (None, message["incarnation"])) or (
                kind == "UnknownSession" and session and message["session"] == session
            ):
                session, asked = None, time.monotonic()
                question = {"type": "Resume", "token": token, "last_received": received} if token else opening
                say(question)
            elif kind == "UnknownSession" and message["session"] == token:  # nothing is known of it: begin again
                token, asked, question = None, time.monotonic(), {**opening, "first_index": received + 1}
                say(question)
            incarnation = message.get("incarnation", incarnation)
    say({"type": "Close", "session": session})
    socket.close()


def load(argument):
    if not argument.endswith(".wav"):
        return argument
    with wave.open(argument) as file:
        if (file.getframerate(), file.getsampwidth(), file.getnchannels()) != (16000, 2, 1):
            raise ValueError(f"{argument} is not 16 kHz, 16 bit, mono; ffmpeg -i {argument} -ar 16000 -ac 1 out.wav")
        return file.readframes(file.getnframes())


def main(arguments):
    if len(arguments) < 5:
        sys.exit("usage: plain_client.py ENDPOINT PIPELINE SOURCE TARGET UTTERANCE...")
    endpoint, pipeline, source, target, *given = arguments
    try:
        for outcome, samples in translate(endpoint, [load(one) for one in given], pipeline, source, target):
            audio = f"{len(samples)} bytes at {outcome['sample_rate']} Hz" if samples else "no audio"
            print(outcome["index"], outcome["outcome"], outcome.get("code", ""), outcome.get("texts", {}), audio)
    except (OSError, RuntimeError, ValueError, wave.Error, zmq.ZMQError) as error:  # TimeoutError is an OSError
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
