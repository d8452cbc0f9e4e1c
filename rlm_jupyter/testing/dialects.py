"""How providers answer, for the scripted server: what each refuses, how it tells usage, and the shapes of its failures.

Written from the providers' own documentation and from errors that people posted, independently of what the client knows of
them (`lm.dialects`): the tests hold the two against each other. Where a provider's words for a failure are not published, the
status is theirs and the words are plain ones. Servers of the user's own fail in fewer ways.
`{model}`, `{key}` and `{name}` stand for what was asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

FAILURES = ("key", "model", "quota", "rate", "context")
"""What a paid provider's profile knows how to fail with."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One provider's server.

    Attributes
    ----------
    path
        Of chat completions; `{model}` where a deployment's name belongs to it.
    key_header
        Where the key is looked for; `authorization` with `Bearer`. None: no key is looked at.
    refused
        Parameters that it refuses, by `refusal` (status, body).
    required
        Parameters that it cannot do without.
    usage
        Of a stream: `asked` (by `stream_options`), `always`, or `native` (Ollama).
    whole_up_to
        The most tokens for which a whole reply may be asked.
    failures
        Kind to (status, body).
    """

    path: str
    failures: Mapping[str, tuple[int, Any]]
    key_header: str | None = "authorization"
    refused: tuple[str, ...] = ()
    refusal: tuple[int, Any] = field(default=(400, {}))
    required: tuple[str, ...] = ("model", "messages")
    usage: str = "asked"
    whole_up_to: int | None = None

    def refuse(self, path: str, headers: Mapping[str, str], body: Mapping[str, Any], key: str | None) -> tuple[int, str] | None:
        """Give the answer (status, body) to a request that this provider would not take; None where it would."""
        model = str(body.get("model", ""))
        if path.replace("%20", " ") != self.path.format(model=model):
            return 404, json.dumps({"error": {"message": f"no such path: {path}", "type": "invalid_request_error"}})
        sent = headers.get(self.key_header, "") if self.key_header else ""
        if key is not None and self.key_header and sent != (f"Bearer {key}" if self.key_header == "authorization" else key):
            return self.failure("key", model, sent.removeprefix("Bearer "))
        for name in self.refused:
            if name in body:
                return self.refusal[0], _filled(self.refusal[1], name=name)
        for name in self.required:
            if name not in body:
                return 400, json.dumps({"error": {"message": f"missing {name}", "type": "invalid_request_error"}})
        cap = body.get("max_tokens", body.get("max_completion_tokens", 0))
        if self.whole_up_to is not None and cap > self.whole_up_to and not body.get("stream"):
            message = f"Requests with max_tokens > {self.whole_up_to} must have stream=true"
            return 400, json.dumps(
                {"error": {"message": message, "param": "max_tokens", "code": "BAD_REQUEST", "type": "error"}}
            )
        return None

    def failure(self, kind: str, model: str, key: str = "") -> tuple[int, str]:
        """Give status and body of a failure, as this provider tells it."""
        status, body = self.failures[kind]
        return status, _filled(body, model=model, key=key)


def _filled(body: Any, **values: str) -> str:
    text = body if isinstance(body, str) else json.dumps(body)
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", json.dumps(value)[1:-1])
    return text


def _openai(message: str, code: str | None = None, kind: str = "invalid_request_error", param: str | None = None) -> Any:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


_TOO_LONG = (
    "This model's maximum context length is 131072 tokens. However, your messages resulted in 200113 tokens. "
    "Please reduce the length of the messages."
)
_OLLAMA_TOO_LONG = {
    "error": {
        "code": 400,
        "message": "request (48889 tokens) exceeds the available context size (32768 tokens), try increasing it",
        "type": "exceed_context_size_error",
    }
}
_RATE = _openai("Rate limit reached for {model}: Limit 200000, Used 199000, Requested 3000.", "rate_limit_exceeded", "tokens")
_FASTAPI = {"detail": [{"type": "extra_forbidden", "loc": ["body", "{name}"], "msg": "Extra inputs are not permitted"}]}
_COMMON: Mapping[str, tuple[int, Any]] = {
    "key": (401, _openai("Incorrect API key provided: {key}.", "invalid_api_key")),
    "model": (404, _openai("The model `{model}` does not exist or you do not have access to it.", "model_not_found")),
    "quota": (
        429,
        _openai("You exceeded your current quota, please check your plan.", "insufficient_quota", "insufficient_quota"),
    ),
    "rate": (429, _RATE),
    "context": (400, _openai(_TOO_LONG, "context_length_exceeded", param="messages")),
}
_OPENAI_REFUSAL = (
    400,
    _openai("Unsupported parameter: '{name}' is not supported with this model.", "unsupported_parameter", param="{name}"),
)


def _google(status: int, word: str, message: str) -> tuple[int, Any]:
    return status, [{"error": {"code": status, "message": message, "status": word}}]


def _mistral(message: Any, kind: str, code: str) -> Any:
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}


PROFILES: Mapping[str, Profile] = {
    "openai": Profile("/v1/chat/completions", _COMMON, refused=("max_tokens",), refusal=_OPENAI_REFUSAL),
    "anthropic": Profile(
        "/v1/chat/completions",
        {
            "key": (
                401,
                {"error": {"code": "invalid_api_key", "message": "invalid x-api-key", "type": "authentication_error"}},
            ),
            "model": (404, {"error": {"code": "not_found", "message": "model: {model}", "type": "not_found_error"}}),
            "quota": (400, _openai("Your credit balance is too low to access the Anthropic API.")),
            "rate": (429, _openai("This request would exceed your organization's rate limit.", None, "rate_limit_error")),
            "context": (400, _openai("prompt is too long: 208310 tokens > 200000 maximum")),
        },
    ),
    "gemini": Profile(
        "/v1beta/openai/chat/completions",
        {
            "key": _google(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key."),
            "model": _google(404, "NOT_FOUND", "models/{model} is not found for API version v1main."),
            "quota": _google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota, please check your plan and billing."),
            "rate": _google(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."),
            "context": _google(
                400,
                "INVALID_ARGUMENT",
                "The input token count (1213311) exceeds the maximum number of tokens allowed (1048576).",
            ),
        },
    ),
    "groq": Profile(
        "/openai/v1/chat/completions",
        {
            **_COMMON,
            "key": (401, _openai("Invalid API Key", "invalid_api_key")),
            "quota": (400, _openai("The organization has reached its spend limit.", "blocked_api_access")),
            "context": (400, _openai("Please reduce the length of the messages or completion.", "context_length_exceeded")),
        },
    ),
    "together": Profile(
        "/v1/chat/completions",
        {
            "key": (
                401,
                _openai("Invalid API key provided. You can find your API key on the settings page.", "invalid_api_key"),
            ),
            "model": (404, _openai("Unable to access model {model}.", "model_not_available")),
            "quota": (402, _openai("Credit limit exceeded, please go to the billing page.", None, "credit_limit")),
            "rate": (429, _openai("You have reached the rate limit.", None, "model_rate_limit")),
            "context": (422, _openai("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 131073: too long")),
        },
    ),
    "deepseek": Profile(
        "/chat/completions",
        {
            "key": (401, _openai("Authentication Fails, Your api key: ****abcd is invalid", "invalid_request_error")),
            "model": (400, _openai("Model Not Exist", "invalid_request_error")),
            "quota": (402, _openai("Insufficient Balance", "invalid_request_error", "unknown_error")),
            "rate": (429, _openai("Too many requests")),
            "context": (400, _openai(_TOO_LONG)),
        },
        refused=("max_completion_tokens",),
        refusal=(400, _openai("Unknown parameter: {name}")),
    ),
    "mistral": Profile(
        "/v1/chat/completions",
        {
            "key": (401, {"detail": "Unauthorized"}),
            "model": (400, _mistral("Invalid model: {model}", "invalid_model", "1500")),
            "quota": (402, {"detail": "You have no more credits."}),
            "rate": (429, _mistral("Requests rate limit exceeded", "rate_limited", "1300")),
            "context": (
                400,
                _mistral(
                    "Prompt contains 40006 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
                    "invalid_request_prompt",
                    "3051",
                ),
            ),
        },
        refused=("max_completion_tokens", "stream_options", "store"),
        refusal=(422, _mistral(_FASTAPI, "invalid_request_error", "3001")),
        usage="always",
    ),
    "xai": Profile(
        "/v1/chat/completions",
        {
            "key": (
                400,
                {
                    "code": "Client specified an invalid argument",
                    "error": "Incorrect API key provided: {key}. See console.x.ai.",
                },
            ),
            "model": (
                404,
                {
                    "code": "Some requested entity was not found",
                    "error": "The model {model} does not exist or your team has no access.",
                },
            ),
            "quota": (
                429,
                {
                    "code": "Some resource has been exhausted",
                    "error": "Your team has either used all available credits or reached its monthly spending limit.",
                },
            ),
            "rate": (429, {"code": "Some resource has been exhausted", "error": "Too many requests for team."}),
            "context": (
                400,
                {
                    "code": "Client specified an invalid argument",
                    "error": "This model's maximum prompt length is 131072 but the request contains 200113 tokens.",
                },
            ),
        },
    ),
    "fireworks": Profile(
        "/inference/v1/chat/completions",
        {
            "key": (
                401,
                {
                    "error": {
                        "object": "error",
                        "type": "invalid_request_error",
                        "message": "The API key you provided is invalid.",
                    }
                },
            ),
            "model": (
                404,
                {
                    "error": {
                        "object": "error",
                        "type": "invalid_request_error",
                        "code": "NOT_FOUND",
                        "message": "Model not found, inaccessible, and/or not deployed",
                    }
                },
            ),
            "quota": (
                412,
                {
                    "error": {
                        "object": "error",
                        "message": "Account is suspended, possibly due to reaching the monthly "
                        "spending limit or failure to pay past invoices.",
                    }
                },
            ),
            "rate": (429, {"error": {"object": "error", "type": "rate_limit_exceeded", "message": "Rate limit exceeded"}}),
            "context": (
                400,
                {
                    "error": {
                        "object": "error",
                        "type": "invalid_request_error",
                        "message": "The prompt is too long: 200113, model maximum context length: 131071",
                    }
                },
            ),
        },
        refused=("stream_options",),
        refusal=(400, {"error": {"object": "error", "message": "Extra inputs are not permitted, field: '{name}'"}}),
        usage="always",
        whole_up_to=4096,
    ),
    "openrouter": Profile(
        "/api/v1/chat/completions",
        {
            "key": (401, {"error": {"message": "No auth credentials found", "code": 401}}),
            "model": (400, {"error": {"message": "{model} is not a valid model ID", "code": 400}}),
            "quota": (402, {"error": {"message": "Insufficient credits. Add more to your account.", "code": 402}}),
            "rate": (429, {"error": {"message": "Rate limit exceeded: free-models-per-day.", "code": 429}}),
            "context": (400, {"error": {"message": "This endpoint's maximum context length is 131072 tokens.", "code": 400}}),
        },
    ),
    "cerebras": Profile(
        "/v1/chat/completions",
        {
            "key": (
                401,
                {"message": "Wrong API Key", "type": "invalid_request_error", "param": "api_key", "code": "wrong_api_key"},
            ),
            "model": (
                404,
                {"message": "Model {model} does not exist or you do not have access to it.", "code": "model_not_found"},
            ),
            "quota": (402, {"message": "Payment required: no more credits.", "code": "payment_required"}),
            "rate": (429, {"message": "Requests per minute limit exceeded", "code": "request_quota_exceeded"}),
            "context": (400, {"message": "Please reduce the length of the messages.", "code": "context_length_exceeded"}),
        },
    ),
    "azure": Profile(
        "/openai/v1/chat/completions",
        {
            "key": (401, _openai("Access denied due to invalid subscription key or wrong API endpoint.", "401")),
            "model": (404, _openai("The API deployment for this resource does not exist.", "DeploymentNotFound")),
            "quota": (429, _openai("You exceeded your current quota.", "insufficient_quota")),
            "rate": (429, _openai("Requests have exceeded the token rate limit of your pricing tier.", "429")),
            "context": (400, _openai(_TOO_LONG, "context_length_exceeded")),
        },
        key_header="api-key",
        refused=("max_tokens",),
        refusal=_OPENAI_REFUSAL,
    ),
    "ollama": Profile(
        "/api/chat",
        {
            "model": (404, {"error": "model '{model}' not found"}),
            "rate": (503, {"error": "server busy, please try again. maximum pending requests exceeded"}),
            "context": (
                400,
                {"error": json.dumps(_OLLAMA_TOO_LONG)},
            ),
        },
        key_header=None,
        required=("model", "messages", "options"),
        usage="native",
    ),
    "vllm": Profile(
        "/v1/chat/completions",
        {
            "key": (401, {"error": "Unauthorized"}),
            "model": (404, _openai("The model `{model}` does not exist.", "404", "NotFoundError")),
            "context": (400, _openai("This model's maximum context length is 8192 tokens.", "400", "BadRequestError")),
        },
    ),
    "lmstudio": Profile(
        "/v1/chat/completions",
        {
            "model": (
                400,
                {"error": {"message": "No models loaded. Please load a model in the developer page.", "type": "error"}},
            ),
            "context": (
                400,
                {"error": "Trying to keep the first 9001 tokens when context the overflows. The context size is 4096."},
            ),
        },
        key_header=None,
    ),
}
"""Profiles by the name of their provider."""
DATED_AZURE = replace(
    PROFILES["azure"], path="/openai/deployments/{model}/chat/completions?api-version=2024-10-21", refused=("stream_options",)
)
"""Azure's older interface, which knows the deployment by its path."""
