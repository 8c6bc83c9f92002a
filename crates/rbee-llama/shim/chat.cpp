// Chat templates: llama.cpp's own Jinja engine and template handling, with
// JSON in and out.
#include "guard.h"
#include "shim.h"

#include "chat.h"

struct rbee_chat_template {
    common_chat_templates_ptr parsed;
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
    inputs.add_generation_prompt = request.at("add_generation_prompt").get<bool>();
    inputs.enable_thinking       = request.at("enable_thinking").get<bool>();
    return inputs;
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

char * rbee_chat_template_render(
        const rbee_chat_template * tmpl,
        const char               * request_json,
        char                    ** error) {
    return rbee::guarded<char *>(error, nullptr, [&] {
        const auto rendered = common_chat_templates_apply(tmpl->parsed.get(), parse_request(request_json));

        auto reply = common_json::object();
        reply["prompt"] = rendered.prompt;
        reply["stops"]  = rendered.additional_stops;
        return rbee::copy_string(reply.dump());
    });
}
