// Chat templates: llama.cpp's own Jinja engine and template handling, with
// JSON in and out.
#include "guard.h"
#include "shim.h"

#include "chat-auto-parser.h"
#include "chat.h"

struct rbee_chat_template {
    common_chat_templates_ptr parsed;
};

struct rbee_reply_parser {
    common_chat_parser_params params;
};

namespace {

// The reason a template does not parse. common_chat_templates_init rethrows
// its error as a plain std::exception, which has lost the message.
std::string parse_failure(const llama_model * model, const char * override_source) {
    const char * source = override_source != nullptr ? override_source : llama_model_chat_template(model, nullptr);
    try {
        common_chat_template(source != nullptr ? source : "", "", "");
    } catch (const std::exception & caught) {
        return caught.what();
    }
    return "the template cannot be used";
}

common_chat_templates_inputs parse_request(const char * request_json) {
    const auto request = common_json::parse(request_json);

    common_chat_templates_inputs inputs;
    inputs.use_jinja             = true;
    inputs.messages              = common_chat_msgs_parse_oaicompat(request.at("messages"));
    inputs.tools                 = common_chat_tools_parse_oaicompat(request.at("tools"));
    inputs.tool_choice           = common_chat_tool_choice_parse_oaicompat(request.at("tool_choice").get<std::string>());
    inputs.parallel_tool_calls   = request.at("parallel_tool_calls").get<bool>();
    inputs.add_generation_prompt = request.at("add_generation_prompt").get<bool>();
    inputs.enable_thinking       = request.at("enable_thinking").get<bool>();
    inputs.force_pure_content    = request.at("text_only").get<bool>();
    inputs.reasoning_format      = COMMON_REASONING_FORMAT_DEEPSEEK;
    for (const auto & [name, value] : request.at("arguments").items()) {
        inputs.chat_template_kwargs[name] = value.dump();
    }
    return inputs;
}

common_chat_templates_inputs smallest_request() {
    common_chat_msg message;
    message.role    = "user";
    message.content = "Hi";

    common_chat_templates_inputs inputs;
    inputs.messages         = { message };
    inputs.reasoning_format = COMMON_REASONING_FORMAT_DEEPSEEK;
    return inputs;
}

// Whether llama.cpp handles this template by code of its own instead of what
// it finds out by trying it.
bool is_special(const common_chat_templates * tmpls) {
    const auto source = common_chat_templates_source(tmpls);
    const common_chat_template tmpl(source, "", "");

    common_json message = common_json::object();
    message["role"]    = "user";
    message["content"] = "Hi";

    autoparser::generation_params params;
    params.messages              = common_json::array();
    params.messages.push_back(message);
    params.add_generation_prompt = true;
    return common_chat_try_specialized_template(tmpl, source, params).has_value();
}

}

rbee_chat_template * rbee_chat_template_new(
        const llama_model * model,
        const char        * override_source,
        char             ** error) {
    return rbee::guarded<rbee_chat_template *>(error, nullptr, [&]() -> rbee_chat_template * {
        try {
            const std::string source = override_source != nullptr ? override_source : "";
            return new rbee_chat_template { common_chat_templates_init(model, source) };
        } catch (const std::exception &) {
            rbee::set_error(error, parse_failure(model, override_source).c_str());
            return nullptr;
        }
    });
}

void rbee_chat_template_free(rbee_chat_template * tmpl) {
    delete tmpl;
}

bool rbee_chat_template_is_explicit(const rbee_chat_template * tmpl) {
    return common_chat_templates_was_explicit(tmpl->parsed.get());
}

char * rbee_chat_template_traits(const rbee_chat_template * tmpl, char ** error) {
    return rbee::guarded<char *>(error, nullptr, [&] {
        const auto * parsed = tmpl->parsed.get();
        const auto caps = common_chat_templates_get_caps(parsed);
        const auto rendered = common_chat_templates_apply(parsed, smallest_request());

        auto traits = common_json::object();
        traits["tools"]      = caps.at("supports_tools");
        traits["tool_calls"] = caps.at("supports_tool_calls");
        traits["parallel"]   = caps.at("supports_parallel_tool_calls");
        traits["special"]    = is_special(parsed);
        traits["thinking"]   = rendered.supports_thinking;
        return rbee::copy_string(traits.dump());
    });
}

char * rbee_chat_template_render(
        const rbee_chat_template * tmpl,
        const char               * request_json,
        char                    ** error) {
    return rbee::guarded<char *>(error, nullptr, [&] {
        const auto rendered = common_chat_templates_apply(tmpl->parsed.get(), parse_request(request_json));

        auto words    = common_json::array();
        auto patterns = common_json::array();
        for (const auto & trigger : rendered.grammar_triggers) {
            auto & list = trigger.type == COMMON_GRAMMAR_TRIGGER_TYPE_WORD ? words : patterns;
            list.push_back(trigger.value);
        }
        auto reply = common_json::object();
        reply["prompt"]            = rendered.prompt;
        reply["stops"]             = rendered.additional_stops;
        reply["generation_prompt"] = rendered.generation_prompt;
        reply["parser"]            = rendered.parser;
        reply["format"]            = static_cast<int>(rendered.format);
        reply["grammar"]           = rendered.grammar;
        reply["lazy"]              = rendered.grammar_lazy;
        reply["triggers"]          = words;
        reply["patterns"]          = patterns;
        reply["preserved"]         = rendered.preserved_tokens;
        reply["thinking_start"]    = rendered.thinking_start_tag;
        reply["thinking_end"]      = rendered.thinking_end_tags;
        return rbee::copy_string(reply.dump());
    });
}

rbee_reply_parser * rbee_reply_parser_new(
        const char  * parser,
        int32_t       format,
        const char  * generation_prompt,
        char       ** error) {
    return rbee::guarded<rbee_reply_parser *>(error, nullptr, [&] {
        auto made = std::make_unique<rbee_reply_parser>();
        made->params.format            = static_cast<common_chat_format>(format);
        made->params.reasoning_format  = COMMON_REASONING_FORMAT_DEEPSEEK;
        made->params.generation_prompt = generation_prompt;
        made->params.parser.load(parser);
        return made.release();
    });
}

void rbee_reply_parser_free(rbee_reply_parser * parser) {
    delete parser;
}

char * rbee_reply_parser_parse(
        const rbee_reply_parser * parser,
        const char              * text,
        size_t                    text_len,
        char                   ** error) {
    return rbee::guarded<char *>(error, nullptr, [&] {
        // The parser takes a text that ends early in any case. Told that it is
        // partial, it would also hide that a text can no longer be read.
        const auto message = common_chat_parse(std::string(text, text_len), false, parser->params);

        auto calls = common_json::array();
        for (const auto & call : message.tool_calls) {
            auto entry = common_json::object();
            entry["name"]      = call.name;
            entry["arguments"] = call.arguments;
            entry["id"]        = call.id;
            calls.push_back(entry);
        }
        auto reply = common_json::object();
        reply["content"]           = message.content;
        reply["reasoning_content"] = message.reasoning_content;
        reply["tool_calls"]        = calls;
        return rbee::copy_string(reply.dump());
    });
}
