"""The other side: `AutoModelForSequenceClassification` behind a plain route with dynamic batching.

    python -P experiments/studies/serving/peer.py MODEL BATCH_TOKENS

Run by the interpreter of an environment with torch and transformers; it imports nothing of rmjax. POST {"input": [[ids]]} gets
{"data": [{"data": [[reward]]}]}, as vLLM's /pooling. Waiting texts are padded and run together, the oldest first, as many as
`BATCH_TOKENS` allow with the padding; meanwhile others come in.
"""

import asyncio
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification


class Model:
    """Texts → rewards, in batches of what waits."""

    def __init__(self, folder: str, batch_tokens: int):
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        self.pad, self.batch_tokens = self.model.config.pad_token_id, batch_tokens
        self.waiting: list[tuple[list[int], asyncio.Future]] = []
        self.some, self.thread = asyncio.Event(), ThreadPoolExecutor(1)

    async def reward(self, ids: list[int]) -> float:
        """One text's."""
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((ids, future))
        self.some.set()
        return await future

    async def work(self) -> None:
        """Runs batches for ever."""
        while True:
            if not self.waiting:
                self.some.clear()
                await self.some.wait()
                await asyncio.sleep(0.003)
            batch, longest = 0, 0
            for ids, _ in self.waiting:
                longest = max(longest, len(ids))
                if batch and (batch + 1) * longest > self.batch_tokens:
                    break
                batch += 1
            taken, self.waiting = self.waiting[:batch], self.waiting[batch:]
            rewards = await asyncio.get_running_loop().run_in_executor(self.thread, self.run, [ids for ids, _ in taken])
            for (_, future), reward in zip(taken, rewards, strict=True):
                future.set_result(reward)

    @torch.inference_mode()
    def run(self, texts: list[list[int]]) -> list[float]:
        """One padded call."""
        longest = max(map(len, texts))
        ids = torch.tensor([text + [self.pad] * (longest - len(text)) for text in texts])
        mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
        return self.model(input_ids=ids, attention_mask=mask).logits[:, 0].tolist()


async def answer(model: Model, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection, kept."""
    while True:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        except asyncio.IncompleteReadError:
            break
        length = next(int(line.partition(":")[2]) for line in head if line.startswith("content-length:"))
        body: dict[str, Any] = json.loads(await reader.readexactly(length))
        rewards = await asyncio.gather(*map(model.reward, body["input"]))
        reply = json.dumps({"data": [{"index": i, "data": [[reward]]} for i, reward in enumerate(rewards)]}).encode()
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(reply)}\r\n\r\n".encode() + reply)
        await writer.drain()
    writer.close()


async def main(folder: str, batch_tokens: int) -> None:
    """Serves until it is killed."""
    model = Model(folder, batch_tokens)
    work = asyncio.create_task(model.work())
    server = await asyncio.start_server(lambda *streams: answer(model, *streams), "127.0.0.1", 0, limit=1 << 24)
    print(f"serving at http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await work


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
